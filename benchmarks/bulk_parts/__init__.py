"""What the benchmark of `classify --out` consists of."""
