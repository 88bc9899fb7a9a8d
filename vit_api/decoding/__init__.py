"""Decodes an upload to bounded pixels. The only package that imports PIL."""
