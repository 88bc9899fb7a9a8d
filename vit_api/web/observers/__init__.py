"""What is recorded about each answered request: access log, metrics, traces."""
