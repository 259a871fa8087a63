"""Float ONNX files as models: read, normalised by ONNX Runtime, brought into PyTorch, compared."""
