"""The Vision Transformer on a device. Only this package may import torch and transformers."""
