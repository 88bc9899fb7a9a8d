"""The container image, built and run for real: `make container-test`."""
