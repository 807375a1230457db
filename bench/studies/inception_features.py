"""The standard Inception of FID as a network for ``bitdance-edge evaluate --features``, made of its published weights.

    python bench/studies/inception_features.py pt_inception-2015-12-05-6726825d.pth -o inception.onnx

The weights (95,628,359 bytes) are those of TensorFlow's network of 2015-12-05, as ported for
https://github.com/mseitzer/pytorch-fid (release ``fid_weights``). The network takes images of any size, uint8
``[N, H, W, 3]``, and resizes them to 299x299 as TensorFlow 1 did, like ADM's evaluation suite. Its ``features`` are the
2048 of the last pool, and its ``scores`` the 1008 logits without bias, of which that suite makes the inception score.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bitdance_edge.evaluation.extractor import INCEPTION_WEIGHTS, write_origin
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import sha256

SIDE, OPSET = 299, 18
EPSILON = 0.001  # of its batch normalisations
STEM = ("Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 max", "Conv2d_3b_1x1 Conv2d_4a_3x3 max")
# Of each kind of block, its branches, each a chain of layers. "avg" and "max1" keep the size, "max" halves it; a layer
# in brackets reads the output before them, and their outputs are joined.
A = ("branch1x1", "branch5x5_1 branch5x5_2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3", "avg branch_pool")
B = ("branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3", "max")
C = (
    "branch1x1",
    "branch7x7_1 branch7x7_2 branch7x7_3",
    "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
    "avg branch_pool",
)
D = ("branch3x3_1 branch3x3_2", "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4", "max")
E = (
    "branch1x1",
    "branch3x3_1 [branch3x3_2a branch3x3_2b]",
    "branch3x3dbl_1 branch3x3dbl_2 [branch3x3dbl_3a branch3x3dbl_3b]",
    "avg branch_pool",
)
E_LAST = (*E[:3], "max1 branch_pool")  # a maximum where the paper has a mean: so were the weights used ever since
BLOCKS = {
    **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), A),
    "Mixed_6a": B,
    **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), C),
    "Mixed_7a": D,
    "Mixed_7b": E,
    "Mixed_7c": E_LAST,
}
HALVING = (
    "Conv2d_1a_3x3",
    "Mixed_6a.branch3x3",
    "Mixed_6a.branch3x3dbl_3",
    "Mixed_7a.branch3x3_2",
    "Mixed_7a.branch7x7x3_4",
)
UNPADDED = (*HALVING, "Conv2d_2a_3x3", "Conv2d_4a_3x3")
POOLS = {
    "avg": ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "max1": ("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "max": ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]}),
}


class InceptionGraph:
    """Collects the nodes of the network, and its weights with the batch normalisations folded into them."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def model(self) -> onnx.ModelProto:
        """Write the whole network."""
        features = self._body(self._prepared())
        self.add("GlobalAveragePool", [features], "pool")
        self.add("Flatten", ["pool"], "features")
        self.constants["fc"] = self.weights["fc.weight"].T.copy()
        self.add("MatMul", ["features", "fc"], "scores")
        graph = helper.make_graph(
            self.nodes,
            "inception",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", "H", "W", 3])],
            [
                helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 2048]),
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(self.weights["fc.bias"])]),
            ],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _prepared(self) -> str:
        """Images as TensorFlow 1 resizes them: pixel i of the new ones is at i times the ratio of the sizes."""
        self.constants |= {"sizes": np.array([SIDE, SIDE]), "half": np.array(128, np.float32)}
        self.add("Cast", ["pixels"], "float", to=TensorProto.FLOAT)
        self.add("Transpose", ["float"], "planes", perm=[0, 3, 1, 2])
        how = {"mode": "linear", "coordinate_transformation_mode": "asymmetric", "axes": [2, 3]}
        self.add("Resize", ["planes", "", "", "sizes"], "resized", **how)
        self.add("Sub", ["resized", "half"], "centred")
        return self.add("Div", ["centred", "half"], "prepared")

    def _body(self, value: str) -> str:
        for part, chain in enumerate(STEM):
            value = self._chain(chain, value, "", f"stem{part}")
        for block, branches in BLOCKS.items():
            ends = [self._chain(chain, value, f"{block}.", f"{block}.{i}") for i, chain in enumerate(branches)]
            value = self.add("Concat", ends, block, axis=1)
        return value

    def _chain(self, chain: str, value: str, prefix: str, name: str) -> str:
        """Add the layers of a chain, one after the other; returns the name of the last output."""
        before, _, together = chain.partition(" [")
        for layer in before.split():
            if layer in POOLS:
                kind, attributes = POOLS[layer]
                value = self.add(kind, [value], f"{name}.{layer}", **attributes)
            else:
                value = self._convolution(f"{prefix}{layer}", value)
        if together:
            ends = [self._convolution(f"{prefix}{layer}", value) for layer in together.rstrip("]").split()]
            value = self.add("Concat", ends, f"{name}.joined", axis=1)
        return value

    def _convolution(self, name: str, value: str) -> str:
        weight, norm = self.weights[f"{name}.conv.weight"], f"{name}.bn"
        scale = self.weights[f"{norm}.weight"] / np.sqrt(self.weights[f"{norm}.running_var"] + EPSILON)
        bias = self.weights[f"{norm}.bias"] - self.weights[f"{norm}.running_mean"] * scale
        self.constants[f"{name}.weight"] = (weight * scale[:, None, None, None]).astype(np.float32)
        self.constants[f"{name}.bias"] = bias.astype(np.float32)
        pads = [0, 0] if name in UNPADDED else [side // 2 for side in weight.shape[2:]]
        strides = [2, 2] if name in HALVING else [1, 1]
        inputs = [value, f"{name}.weight", f"{name}.bias"]
        self.add("Conv", inputs, f"{name}.conv", pads=pads * 2, strides=strides)
        return self.add("Relu", [f"{name}.conv"], name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help=".onnx file to write")
    args = parser.parse_args()
    state = torch.load(args.weights, map_location="cpu", weights_only=True)
    model = InceptionGraph({name: value.numpy() for name, value in state.items()}).model()
    with written_whole(args.out) as file:
        file.write(model.SerializeToString())
    write_origin(args.out, args.weights)
    standard = sha256(args.weights) == INCEPTION_WEIGHTS
    print(f"{args.out}: {'the standard Inception' if standard else 'NOT of the standard weights; no FID'}")


if __name__ == "__main__":
    main()
