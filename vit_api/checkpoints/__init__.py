"""Finding and reading a model's files, without torch; `digits/` is the embedded model."""
