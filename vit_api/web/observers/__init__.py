"""What is recorded about each request: access log, metrics and traces."""
