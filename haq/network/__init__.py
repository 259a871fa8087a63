"""A model taken apart: its layers, and the tensors between them that are quantized."""
