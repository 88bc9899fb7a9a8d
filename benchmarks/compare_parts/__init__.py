"""The parts of `benchmarks.compare`: what is sent, to which servers, and the tables."""
