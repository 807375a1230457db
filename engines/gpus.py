"""The GPUs that TensorRT-RTX builds for, by compute capability."""

# Compute capability -> GPUs, as TensorRT-RTX names its targets (support matrix of TensorRT-RTX 1.7).
GPUS = {
    "7.5": "RTX 20, T4",
    "8.0": "A100, A30",
    "8.6": "RTX 30, A10, A40",
    "8.9": "RTX 40, L4, L40",
    "12.0": "RTX 50, RTX PRO",
    "12.1": "DGX Spark",
}
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
DEFAULT_GPUS = ("8.0", "8.6", "8.9", "12.0")
