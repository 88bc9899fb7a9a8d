"""The command `quantize`, which makes an int8 copy of a checkpoint, and judges it."""
