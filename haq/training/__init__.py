"""The training loop of float and of quantized networks."""
