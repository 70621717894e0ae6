"""The tools that a bundle depends on."""

from __future__ import annotations

__all__ = ["TOOLS"]

TOOLS = ("msan", "torch", "onnx", "onnxscript", "onnxruntime", "polygraphy", "tensorrt-rtx", "tensorrt")
