"""What runs a stage: ONNX Runtime on the CPU or CUDA, TensorRT and TensorRT-RTX, behind one interface."""
