"""The parts of `benchmarks.gpu`; each runs in its own process, so that none can affect or stop the others."""
