"""The node that opens a bundle: one of those in ComfyUI's model folders, or any folder."""

from pathlib import Path
from typing import Any

import folder_paths  # pyright: ignore[reportMissingImports]
import torch

from bitdance_edge.runtime import Bundle, Pipeline, RequestError

FOLDER = "bitdance"  # in ComfyUI's models/, and in extra_model_paths.yaml


def register_folder() -> None:
    """Make models/bitdance a folder of models, beside those that extra_model_paths.yaml names."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def listed_bundles() -> dict[str, Path]:
    """The bundles in the folders of models, by name."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]
    manifests = [manifest for folder in folders for manifest in sorted(folder.glob("*/bundle.json"))]
    return {manifest.parent.name: manifest.parent for manifest in reversed(manifests)}


def devices() -> list[str]:
    return ["auto", "cpu", "cpu:bf16", "cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


class LoadBundle:
    """Opens a bundle."""

    CATEGORY = "BitDance"
    FUNCTION = "load"
    RETURN_TYPES = ("BITDANCE",)
    RETURN_NAMES = ("pipeline",)
    DESCRIPTION = "Open a bundle written by: bitdance-edge export"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A bundle elsewhere; it overrides the list"
        return {
            "required": {
                "bundle": (sorted(listed_bundles()), {"tooltip": f"A folder in models/{FOLDER}"}),
                "device": (devices(),),
            },
            "optional": {"folder": ("STRING", {"default": "", "tooltip": tooltip})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, bundle: str = "", folder: str = "") -> str | bool:
        """Return True, or what is wrong; a path is accepted as the bundle too, as in workflows made before the list."""
        try:
            Bundle.open(_chosen(bundle, folder))
        except Exception as error:  # ComfyUI shows the text at the node
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, bundle: str, device: str, folder: str = "") -> str:
        """Return a digest that changes when the bundle is exported again, so that ComfyUI loads it again."""
        return Bundle.open(_chosen(bundle, folder)).digest

    def load(self, bundle: str, device: str, folder: str = "") -> tuple[Pipeline]:
        """Open a bundle. Raises: RequestError: none is named; BundleError: it is none; BackendError: it cannot run."""
        return (Pipeline.open(_chosen(bundle, folder), device=device),)


def _chosen(bundle: str, folder: str) -> Path:
    if folder:
        return Path(folder)
    if not bundle:
        raise RequestError(f"no bundle in models/{FOLDER}; put one there, or name its folder")
    return listed_bundles().get(bundle, Path(bundle))
