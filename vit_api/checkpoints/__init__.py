"""Finds and reads a model's files, without torch. `digits/` is the embedded model."""
