"""A user's network: what it may take and give, and when its distance may be called FID."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from features import write_network

from bitdance_edge.evaluation.errors import EvaluationError
from bitdance_edge.evaluation.extractor import INCEPTION_WEIGHTS, READ_BATCH, Extractor, write_origin
from bitdance_edge.evaluation.images import image_files
from bitdance_edge.runtime import Size


def test_features_and_classes_do_not_depend_on_how_many_are_read_at_once(tmp_path: Path) -> None:
    extractor = Extractor(write_network(tmp_path / "net.onnx"), threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (READ_BATCH + 3, 8, 8, 3), np.uint8)
    read, alone = extractor.read(pixels), extractor.read(pixels[-1:])
    assert read.features.shape == (len(pixels), 12) and read.scores is not None
    assert np.array_equal(read.features[-1:], alone.features)
    assert read.classes is not None and read.classes.tolist() == read.scores.argmax(1).tolist()


def test_a_network_without_scores_reads_no_classes(tmp_path: Path) -> None:
    read = Extractor(write_network(tmp_path / "net.onnx", outputs=("features",))).read(np.zeros((1, 8, 8, 3), np.uint8))
    assert read.scores is None and read.classes is None


def test_a_network_without_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="gives scores; one output must be named 'features'"):
        Extractor(write_network(tmp_path / "net.onnx", outputs=("scores",)))


def test_images_of_a_size_that_it_does_not_take_are_refused(tmp_path: Path) -> None:
    extractor = Extractor(write_network(tmp_path / "net.onnx", size=16))
    assert extractor.size == Size(width=16, height=16)
    with pytest.raises(EvaluationError, match="cannot read images of 8x8 pixels"):
        extractor.read(np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    "name, values, said",
    [
        ("features", np.zeros((1, 12), np.float32), r"features of .* are float32 \[1, 12\], not floats \[3, F\]"),
        ("features", np.zeros((3, 2, 2), np.float32), r"not floats \[3, F\] of 3 images"),
        ("features", np.zeros((3, 12), np.int64), r"are int64"),
        ("scores", np.full((3, 4), np.nan, np.float32), "scores of .* are not all finite"),
        ("scores", np.zeros(3, np.float32), r"scores of .* are float32 \[3\]"),
    ],
)
def test_outputs_that_are_not_a_row_of_floats_an_image_are_refused(
    name: str, values: np.ndarray, said: str, tmp_path: Path
) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [f"{each} of all"], [each]) for each in ("features", "scores")],
        "constant",
        [onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["N", "H", "W", 3])],
        [onnx.ValueInfoProto(name=each) for each in ("features", "scores")],
        [
            onnx.numpy_helper.from_array(values if each == name else np.zeros((3, 4), np.float32), f"{each} of all")
            for each in ("features", "scores")
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "net.onnx")
    with pytest.raises(EvaluationError, match=said):
        Extractor(tmp_path / "net.onnx", threads=1).read(np.zeros((3, 8, 8, 3), np.uint8))


def test_a_distance_is_fid_only_with_the_standard_weights_unchanged(tmp_path: Path) -> None:
    network, weights = write_network(tmp_path / "net.onnx"), tmp_path / "weights.pth"
    assert Extractor(network).distance_name == "Fréchet distance"
    weights.write_bytes(b"other weights")
    origin = write_origin(network, weights)
    assert Extractor(network).distance_name == "Fréchet distance"
    about = json.loads(origin.read_text())
    origin.write_text(json.dumps({**about, "weights_sha256": INCEPTION_WEIGHTS}))
    assert Extractor(network).distance_name == "FID"
    network.write_bytes(network.read_bytes() + b"\x72\x00")  # an empty field of the file
    assert Extractor(network).distance_name == "Fréchet distance"
    for content in ("[]", "{", '{"weights_sha256": 3}'):
        origin.write_text(content)
        assert not Extractor(network).is_inception


def test_a_folder_of_one_image_is_no_distribution(tmp_path: Path) -> None:
    (tmp_path / "one.png").touch()
    with pytest.raises(EvaluationError, match="holds 1 image; a distribution needs at least 2"):
        image_files(tmp_path)
