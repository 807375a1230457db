"""Which of ONNX Runtime's two kernels of an INT8 convolution is the faster one here, timed once for each shape."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bitdance_edge.runtime.backends.onnxruntime import cpu_options, import_onnxruntime

ROUNDS = 4  # the first one does not count
CLEARLY = 0.95  # of the time of the usual kernel: what the other must stay below, as timings differ by some percent
MOST_PIXELS = 1 << 16  # of a larger image as many rows are timed: more than a cache holds, and the time is proportional
ANY_SIDE = 128  # pixels of the image that is timed where images may have any size
OPSET, IR_VERSION = 18, 9  # of the graphs that are timed


def products_are_faster(node: NodeProto, image: Sequence[int | str] | None, filters: Sequence[int]) -> bool:
    """Whether a convolution is faster as matrix products, for which its weights have a zero point other than 0.

    Args:
        node: the Conv, of which the attributes count.
        image: its input ``[B, C, H, W]``; it is timed with one image, of a usual size where H and W change.
        filters: its weights ``[outputs, C, kernel height, kernel width]``.
    """
    if image is None or len(image) != 4 or not isinstance(image[1], int):
        return False
    channels, height, width = (size if isinstance(size, int) and size else ANY_SIDE for size in image[1:])
    names = ("dilations", "group", "kernel_shape", "pads", "strides")
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute if each.name in names}
    attributes = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in given.items())
    width = min(width, MOST_PIXELS)
    return _timed(attributes, (channels, min(height, MOST_PIXELS // width), width), tuple(filters))


@cache
def _timed(attributes: tuple[tuple[str, Any], ...], image: tuple[int, ...], filters: tuple[int, ...]) -> bool:
    channels, height, width = image
    took: list[list[float]] = [[], []]
    try:
        sessions = [_session(attributes, channels, filters, zero) for zero in (0, -1)]
        feeds = {"x": np.zeros((1, height, width, channels), np.uint8)}
        for _ in range(ROUNDS):
            for session, times in zip(sessions, took, strict=True):
                started = time.perf_counter()
                session.run(None, feeds)
                times.append(time.perf_counter() - started)
    except Exception:  # onnxruntime's share no base class; what it cannot run is refused with the whole graph
        return False
    usual, products = (min(times[1:]) for times in took)
    return products < CLEARLY * usual


def _session(attributes: tuple[tuple[str, Any], ...], channels: int, filters: tuple[int, ...], zero: int) -> Any:
    """One convolution as ONNX Runtime writes it for Q/DQ pairs, channels last."""
    one, middle = np.array(1, np.float32), np.array(128, np.uint8)
    constants = {
        "x_scale": one,
        "x_zero": middle,
        "w": np.zeros(filters, np.int8),
        "w_scale": np.ones(filters[0], np.float32),
        "w_zero": np.full(filters[0], zero, np.int8),
        "y_scale": one,
        "y_zero": middle,
    }
    node = helper.make_node(
        "QLinearConv", ["x", *constants], ["y"], domain="com.microsoft", channels_last=1, **dict(attributes)
    )
    graph = helper.make_graph(
        [node],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, None, None, channels])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, None, None, filters[0]])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    ort = import_onnxruntime()
    return ort.InferenceSession(model.SerializeToString(), cpu_options(1, "int8"), providers=["CPUExecutionProvider"])
