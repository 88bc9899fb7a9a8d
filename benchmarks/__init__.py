"""Benchmarks and a load test; each is a module to run from the repository's root."""
