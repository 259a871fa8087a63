"""Quantizers, calibration, fake quantization, and the conversion to integers."""
