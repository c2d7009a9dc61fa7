"""Reads a transformer exported to ONNX and turns it into a Trace; needs the package `onnx` (extra `onnx`)."""
