"""The operations of a captured graph as ONNX operators, without a second capture by torch."""
