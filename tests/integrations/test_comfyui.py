"""The ComfyUI nodes, loaded and run as ComfyUI does, with its two modules that they use replaced."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bitdance_edge.runtime import Bundle, Pipeline, Request, RequestError

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"


class Interrupted(Exception):
    """What ComfyUI throws where the user cancels."""


class Comfy:
    """Progress as ComfyUI would show it, and whether the user has cancelled."""

    def __init__(self) -> None:
        self.total, self.values, self.previews = 0, [], []
        self.interrupt_after = 10**9

    def progress_bar(self, total: int) -> "Comfy":
        self.total = total
        return self

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.values.append(value)
        self.previews += [preview] if preview else []

    def throw_exception_if_processing_interrupted(self) -> None:
        if len(self.values) >= self.interrupt_after:
            raise Interrupted


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    fake, package = Comfy(), ModuleType("comfy")
    utils, management = ModuleType("comfy.utils"), ModuleType("comfy.model_management")
    setattr(utils, "ProgressBar", fake.progress_bar)  # noqa: B010
    setattr(management, "throw_exception_if_processing_interrupted", fake.throw_exception_if_processing_interrupted)  # noqa: B010
    for module in (package, utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(package, "utils", utils, raising=False)
    monkeypatch.setattr(package, "model_management", management, raising=False)
    return fake


@pytest.fixture
def nodes(comfy: Comfy) -> Iterator[dict[str, Any]]:
    """The mapping that ComfyUI reads, from the folder under a name of its own as ComfyUI loads it."""
    name = "custom_nodes.bitdance"
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    yield module.NODE_CLASS_MAPPINGS
    for loaded in [key for key in sys.modules if key.startswith(name)]:
        del sys.modules[loaded]


def run(nodes: dict[str, Any], workflow: dict[str, Any], last: str) -> Any:
    """Run a workflow in the format of ComfyUI's API up to one node; what it returns."""

    def value(given: Any) -> Any:
        return done(given[0])[given[1]] if isinstance(given, list) else given

    results: dict[str, tuple[Any, ...]] = {}

    def done(key: str) -> tuple[Any, ...]:
        if key not in results:
            node = workflow[key]
            kind = nodes[node["class_type"]]
            assert node["inputs"].keys() == kind.INPUT_TYPES()["required"].keys()
            results[key] = getattr(kind(), kind.FUNCTION)(**{k: value(v) for k, v in node["inputs"].items()})
            assert len(results[key]) == len(kind.RETURN_TYPES)
        return results[key]

    return done(last)[0]


def workflow(bundle: Bundle, **settings: Any) -> dict[str, Any]:
    """The shipped one, over another bundle."""
    loaded = json.loads((FOLDER / "workflow.json").read_text())
    loaded["1"]["inputs"]["bundle"] = str(bundle.folder)
    loaded["2"]["inputs"].update(settings)
    return loaded


def test_the_shipped_workflow_makes_the_images_of_the_pipeline(
    nodes: dict[str, Any], comfy: Comfy, bundle: Bundle
) -> None:
    images = run(nodes, workflow(bundle, count=2, seed=3, steps=2), "3")
    assert images.dtype == torch.float32 and images.shape == (2, 32, 32, 3)
    with Pipeline.open(bundle.folder) as pipeline:
        wanted = pipeline.generate(Request(classes=["7"], count=2, seed=3, steps=2))
    for image, want in zip((images * 255).round().byte().numpy(), wanted, strict=True):
        assert want.pixels is not None and np.array_equal(image, want.pixels)
    assert comfy.values[-1] == comfy.total == 2 * bundle.model.default_size.patches
    assert comfy.values == sorted(comfy.values)
    assert len(comfy.previews) == 7 and {(kind, shown.size) for kind, shown, _ in comfy.previews} == {
        ("JPEG", (32, 32))
    }


def test_cancelling_stops_before_the_next_patch(nodes: dict[str, Any], comfy: Comfy, bundle: Bundle) -> None:
    comfy.interrupt_after = 3
    with pytest.raises(Interrupted):
        run(nodes, workflow(bundle, steps=1), "2")
    assert len(comfy.values) == 3


def test_errors_are_those_of_the_runtime(nodes: dict[str, Any], bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="horse"):
        run(nodes, workflow(bundle, prompt="horse"), "2")


def test_a_bundle_exported_again_is_loaded_again(nodes: dict[str, Any], bundle: Bundle) -> None:
    assert nodes["BitDanceLoadBundle"].IS_CHANGED(str(bundle.folder), "auto") == bundle.digest


def test_a_model_of_text_takes_prompts_and_sizes(nodes: dict[str, Any], exported: Callable[..., Bundle]) -> None:
    bundle = exported("t2i_16x_swiglu")
    asked = {"prompt": "a red fish", "negative_prompt": "blue", "width": 64, "height": 64, "seed": 3, "steps": 2}
    images = run(nodes, workflow(bundle, count=1, **asked), "3")
    with Pipeline.open(bundle.folder) as pipeline:
        request = Request(prompts=["a red fish"], negative_prompt="blue", size="64x64", seed=3, steps=2)
        (want,) = pipeline.generate(request)
    assert want.pixels is not None and np.array_equal((images[0] * 255).round().byte().numpy(), want.pixels)


@pytest.mark.parametrize("masked", [True, False])
def test_an_image_is_redrawn_inside_its_mask_or_varied(
    nodes: dict[str, Any], comfy: Comfy, bundle: Bundle, masked: bool
) -> None:
    inputs = json.loads((FOLDER / "workflow-edit.json").read_text())["3"]["inputs"]
    node = nodes["BitDanceEdit"]
    declared = node.INPUT_TYPES()
    assert inputs.keys() == {**declared["required"], **declared["optional"]}.keys()
    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    white = np.zeros((32, 32), bool)
    white[4:17, 8:20] = True
    asked = {"prompt": "7", "count": 2, "seed": 3, "steps": 2, "candidates": 2 if masked else 1}
    asked |= {"strength": 1.0 if masked else 0.6, "mask": torch.from_numpy(white)[None].float() if masked else None}
    with Pipeline.open(bundle.folder) as pipeline:
        image = torch.from_numpy(picture)[None].float() / 255
        (images,) = node().edit(**{**inputs, **asked, "pipeline": pipeline, "image": image})
        request = {key: value for key, value in asked.items() if key not in ("prompt", "mask")}
        wanted = pipeline.generate(Request(classes=["7"], init=picture, mask=white if masked else None, **request))
        with pytest.raises(RequestError, match="paint what to redraw in the mask editor"):
            empty = {"mask": torch.zeros(1, 64, 64), "pipeline": pipeline, "image": image}
            node().edit(**{**inputs, **asked, **empty})
    for found, want in zip((images * 255).round().byte().numpy(), wanted, strict=True):
        assert want.pixels is not None and np.array_equal(found, want.pixels)
    assert comfy.values[-1] == comfy.total
