"""What the benchmarks are made of: servers to start, clients to load them with, pictures, and what results need."""
