"""`classify --out`: any number of files to Parquet, in parts that are written once, with or without Ray.

Only this package imports pyarrow and Ray, which the server does not need.
"""
