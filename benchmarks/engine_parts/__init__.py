"""The parts of `benchmarks.engines`."""
