"""ONNX stages to TensorRT engines, and what they became. Needs the ``rtx`` or the ``tensorrt`` extra."""
