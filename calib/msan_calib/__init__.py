"""Decides types on the ONNX graph."""
