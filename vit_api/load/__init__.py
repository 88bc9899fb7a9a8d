"""The load test, `vit-api load` and `vit-api bench`. Knows a server by its HTTP API alone."""
