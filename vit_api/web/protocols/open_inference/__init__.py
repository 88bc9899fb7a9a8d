"""The Open Inference Protocol v2 over HTTP, for clients of Triton and KServe."""
