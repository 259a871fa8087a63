"""ONNX files that integer kernels execute: export, reference, runtime."""
