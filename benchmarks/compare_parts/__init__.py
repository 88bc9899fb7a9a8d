"""The parts of `benchmarks.compare`: uploads, servers and tables."""
