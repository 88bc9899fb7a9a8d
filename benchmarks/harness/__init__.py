"""What benchmarks share: servers, clients, images, and results."""
