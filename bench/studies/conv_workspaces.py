"""Workspaces that cuDNN's heuristics want for a stage's convolutions on an H200, without one.

    pip install --target build/cudnn nvidia-cudnn-cu13 nvidia-cudnn-frontend nvidia-cublas nvidia-cuda-nvrtc
    python tests/fake_cuda/set_up.py build/cuda
    mkdir -p build/driver && cp build/cuda/lib/libcuda.so.1 build/cuda/lib/libcudart.so.13 build/driver
    LD_LIBRARY_PATH=build/driver:build/cudnn/nvidia/cudnn/lib:build/cudnn/nvidia/cu13/lib PYTHONPATH=build/cudnn \\
        python bench/studies/conv_workspaces.py BUNDLE [--stage decoder] [--images 1,8]

cuDNN plans for a described device, none that is there; the driver and runtime that it loads are those of the fake CUDA.
ONNX Runtime has tensors with channels first, and takes a workspace out of the session's arena for each launch.
"""

import argparse
import json
from collections import Counter

import cudnn  # type: ignore[import-not-found]
import onnx

from bitdance_edge.export.graph_tensors import dimension_size
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.dtypes import ONNX_NUMBERS, tensor_bytes

H200 = {
    "deviceName": "NVIDIA H200",
    "deviceVer": 900,
    "driverVer": 13000,
    "cudaDeviceId": 0,
    "pciDeviceId": 0x2335,
    "multiProcessorCount": 132,
    "warpSize": 32,
    "maxCtasPerSM": 32,
    "maxThreadsPerSM": 2048,
    "maxThreadsPerBlock": 1024,
    "maxBlockSize": [1024, 1024, 64],
    "maxGridSize": [2147483647, 65535, 65535],
    "regsPerBlock": 65536,
    "maxRegistersPerSM": 65536,
    "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448,
    "reservedSharedMemoryPerBlock": 1024,
    "smClockRateKHz": 1980000,
    "memClockRateKHz": 3201000,
    "memoryBusWidth": 6144,
    "l2CacheSize": 62914560,
    "totalGlobalMem": 150_000_000_000,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
}
TYPES = {"float32": cudnn.data_type.FLOAT, "float16": cudnn.data_type.HALF, "bfloat16": cudnn.data_type.BFLOAT16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--stage", default="decoder")
    parser.add_argument("--images", default="1", help="at once, comma-separated (default 1)")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    device = cudnn.create_device_properties(json.dumps(H200))
    print(f"cuDNN {cudnn.backend_version()}")
    for images in map(int, args.images.split(",")):
        print(f"| {images} at once: input | weights | number | input MB | weights MB | workspace MB |")
        print("|---|---|---:|---:|---:|---:|")
        for (x, weights, padding, dtype), number in convolutions(bundle, args.stage, images).items():
            sizes = [tensor_bytes(shape, dtype) for shape in (x, weights)]
            sizes.append(workspace(device, x, weights, padding, dtype))
            described = " | ".join("x".join(map(str, shape)) for shape in (x, weights))
            print(f"| {described} | {number} | {' | '.join(f'{size / 1e6:.1f}' for size in sizes)} |", flush=True)


def convolutions(bundle: Bundle, stage: str, images: int) -> Counter[tuple[tuple[int, ...], tuple[int, ...], int, str]]:
    """Shapes of input and weights, padding and element type of a stage's convolutions, and how often each occurs."""
    graph = onnx.load(bundle.verified(stage), load_external_data=False).graph
    named = {"B": images, **bundle.model.largest_size.dims}
    shapes = {
        value.name: tuple(dimension_size(dim.dim_param, named) if dim.dim_param else dim.dim_value for dim in shape.dim)
        for value in (*graph.value_info, *graph.input)
        if (shape := value.type.tensor_type.shape)
    }
    weights = {tensor.name: tensor for tensor in graph.initializer}
    return Counter(
        (
            shapes[node.input[0]],
            tuple(weights[node.input[1]].dims),
            next((attribute.ints[0] for attribute in node.attribute if attribute.name == "pads"), 0),
            ONNX_NUMBERS[weights[node.input[1]].data_type],
        )
        for node in graph.node
        if node.op_type == "Conv"
    )


def workspace(device: object, x: tuple[int, ...], weights: tuple[int, ...], padding: int, dtype: str) -> int:
    """Bytes that the plan takes which the heuristics put first."""
    graph = cudnn.pygraph(
        io_data_type=TYPES[dtype],
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        device_property=device,
    )
    image, weight = (
        graph.tensor(
            name=name, dim=list(shape), stride=[shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1]
        )
        for name, shape in (("x", x), ("w", weights))
    )
    result = graph.conv_fprop(image=image, weight=weight, padding=[padding] * 2, stride=[1, 1], dilation=[1, 1])
    result.set_output(True)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    return graph.get_workspace_size()


if __name__ == "__main__":
    main()
