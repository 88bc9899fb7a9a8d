"""The Vision Transformer on a device: the only package that imports torch and transformers."""
