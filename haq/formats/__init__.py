"""Files a quantized network is handed over in: checkpoints and ONNX."""
