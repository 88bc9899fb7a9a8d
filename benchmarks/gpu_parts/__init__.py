"""The parts of `benchmarks.gpu`; each runs in a process of its own, so that none can spoil or stop the others."""
