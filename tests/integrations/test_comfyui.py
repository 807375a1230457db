"""The ComfyUI nodes, loaded and run as ComfyUI does, with its two modules that they use replaced."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance_edge.runtime import Bundle, Pipeline, Request, RequestError
from bitdance_edge.runtime.image import read_settings, request_from_settings

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


class FolderPaths(ModuleType):
    """ComfyUI's module of folders, over one folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("folder_paths")
        self.models_dir, self.folder = str(folder / "models"), folder
        self.models: dict[str, list[str]] = {}

    def add_model_folder_path(self, name: str, path: str) -> None:
        self.models.setdefault(name, []).append(path)

    def get_folder_paths(self, name: str) -> list[str]:
        return self.models[name]

    def get_output_directory(self) -> str:
        return str(self.folder / "output")

    def get_save_image_path(self, prefix: str, output: str, width: int, height: int) -> tuple[str, str, int, str, str]:
        made = Path(output) / Path(prefix).parent
        made.mkdir(parents=True, exist_ok=True)
        name, subfolder = Path(prefix).name, str(Path(prefix).parent)
        return str(made), name, 1 + len(list(made.glob(f"{name}_*"))), subfolder, prefix


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FolderPaths:
    fake = FolderPaths(tmp_path)
    monkeypatch.setitem(sys.modules, "folder_paths", fake)
    return fake


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    fake, package = Comfy(), ModuleType("comfy")
    utils, management = ModuleType("comfy.utils"), ModuleType("comfy.model_management")
    setattr(utils, "ProgressBar", fake.progress_bar)  # noqa: B010
    setattr(management, "throw_exception_if_processing_interrupted", fake.throw_exception_if_processing_interrupted)  # noqa: B010
    cli = ModuleType("comfy.cli_args")
    setattr(cli, "args", SimpleNamespace(disable_metadata=False))  # noqa: B010
    for module in (package, utils, management, cli):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(package, "utils", utils, raising=False)
    monkeypatch.setattr(package, "model_management", management, raising=False)
    return fake


@pytest.fixture
def nodes(comfy: Comfy, folders: FolderPaths) -> Iterator[dict[str, Any]]:
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
            made = getattr(kind(), kind.FUNCTION)(**{k: value(v) for k, v in node["inputs"].items()})
            results[key] = (made["ui"],) if isinstance(made, dict) else made
            assert isinstance(made, dict) or len(made) == len(kind.RETURN_TYPES)
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
        images, _ = node().edit(**{**inputs, **asked, "pipeline": pipeline, "image": image})
        request = {key: value for key, value in asked.items() if key not in ("prompt", "mask")}
        wanted = pipeline.generate(Request(classes=["7"], init=picture, mask=white if masked else None, **request))
        with pytest.raises(RequestError, match="paint what to redraw in the mask editor"):
            empty = {"mask": torch.zeros(1, 64, 64), "pipeline": pipeline, "image": image}
            node().edit(**{**inputs, **asked, **empty})
    for found, want in zip((images * 255).round().byte().numpy(), wanted, strict=True):
        assert want.pixels is not None and np.array_equal(found, want.pixels)
    assert comfy.values[-1] == comfy.total


def test_bundles_are_listed_and_a_folder_goes_before_the_list(
    nodes: dict[str, Any], folders: FolderPaths, bundle: Bundle
) -> None:
    load = nodes["BitDanceLoadBundle"]
    assert load.INPUT_TYPES()["required"]["bundle"][0] == []
    assert "no bundle in models/bitdance" in load.VALIDATE_INPUTS("")
    (listed,) = folders.models["bitdance"]
    shutil.copytree(bundle.folder, Path(listed) / "mine")
    (Path(listed) / "other").mkdir()
    assert load.INPUT_TYPES()["required"]["bundle"][0] == ["mine"]
    assert {"auto", "cpu", "cuda"} <= set(load.INPUT_TYPES()["required"]["device"][0])
    assert load.VALIDATE_INPUTS("mine") is True and load.VALIDATE_INPUTS("", str(bundle.folder)) is True
    assert "no bundle at" in load.VALIDATE_INPUTS("none")
    (pipeline,) = load().load("mine", "cpu")
    assert pipeline.bundle.folder == Path(listed) / "mine"


def test_a_saved_image_carries_what_makes_it_again(nodes: dict[str, Any], folders: FolderPaths, bundle: Bundle) -> None:
    saved = run(nodes, workflow(bundle, count=2, seed=3, steps=2), "4")["images"]
    assert [file["filename"] for file in saved] == ["bitdance_00001_.png", "bitdance_00002_.png"]
    with Pipeline.open(bundle.folder) as pipeline:
        for index, file in enumerate(saved):
            path = Path(folders.get_output_directory()) / file["subfolder"] / file["filename"]
            settings = read_settings(path)
            assert settings["seed"] == 3 + index
            (again,) = pipeline.generate(request_from_settings(settings))
            assert again.pixels is not None and np.array_equal(np.asarray(Image.open(path)), again.pixels)
    workflows = {"prompt": {"1": {}}, "extra_pnginfo": {"workflow": {"nodes": []}}}
    save = nodes["BitDanceSaveImages"]()
    (file,) = save.save(torch.zeros(1, 4, 4, 3), [{"seed": 1}], "sub/own", **workflows)["ui"]["images"]
    with Image.open(Path(folders.get_output_directory()) / "sub" / file["filename"]) as image:
        assert json.loads(image.info["workflow"]) == {"nodes": []} and json.loads(image.info["prompt"]) == {"1": {}}
    with pytest.raises(RequestError, match="2 images and the settings of 1"):
        save.save(torch.zeros(2, 4, 4, 3), [{}], "own")


def test_an_image_is_encoded_and_completed_from_its_first_rows(nodes: dict[str, Any], bundle: Bundle) -> None:
    with Pipeline.open(bundle.folder) as pipeline:
        (seven,) = pipeline.generate(Request(classes=["7"], seed=3, steps=2))
        assert seven.pixels is not None
        image = torch.from_numpy(seven.pixels)[None].float() / 255
        (tokens,) = nodes["BitDanceEncode"]().encode(pipeline, image, 0, 0, "cover")
        assert np.array_equal(tokens.tokens, pipeline.tokenize(seven.pixels))
        asked = {"prompt": "7", "count": 1, "seed": 5, "steps": 2, "guidance": 0.0, "negative_prompt": ""}
        complete = nodes["BitDanceComplete"]()
        made, settings = complete.complete(pipeline, tokens, rows=1, **asked)
        size = bundle.model.size(tokens.size)
        kept = size.patches_across * bundle.model.tokens_per_step
        request = Request(classes=["7"], seed=5, steps=2, prefix=tokens.tokens[0, :kept])
        (want,) = pipeline.generate(request)
        assert np.array_equal(made.tokens[0], want.tokens) and settings == [dict(want.settings)]
        (plain,) = pipeline.generate(replace(request, prefix=None))
        assert np.array_equal(complete.complete(pipeline, tokens, rows=0, **asked)[0].tokens[0], plain.tokens)
        with pytest.raises(RequestError, match="rows is 99"):
            complete.complete(pipeline, tokens, rows=99, **asked)
