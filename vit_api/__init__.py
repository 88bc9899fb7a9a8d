"""A dynamic-batching image-classification server for Vision Transformers, on LitServe."""

__version__ = "0.1.0"
