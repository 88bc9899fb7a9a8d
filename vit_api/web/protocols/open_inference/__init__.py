"""The Open Inference Protocol v2 over HTTP, as clients of Triton and KServe speak it; a package by concern."""
