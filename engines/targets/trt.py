"""``trt:current``: engines of full TensorRT, for the GPU of the machine that builds them (data-centre GPUs, Jetson)."""

from bitdance_edge.engines.targets.tensorrt import TensorRTTarget

CURRENT_GPU = "trt:current"


def trt_target() -> TensorRTTarget:
    return TensorRTTarget(CURRENT_GPU, "tensorrt", (), ())
