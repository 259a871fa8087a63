"""Measuring on this machine: networks in ONNX Runtime, who ran what, and the energy taken."""
