"""Routes for operators: health, information, cache and metrics."""
