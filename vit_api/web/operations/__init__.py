"""Routes for operators: health, server information, cache and metrics."""
