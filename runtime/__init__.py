"""From a bundle to images, with numpy and one backend: no torch, no onnx, no transformers.

with Pipeline.open("bundles/digits-4x") as pipeline:
    for image in pipeline.generate(Request(classes=[3, 7], seed=1)):
        image.save(f"{image.class_id}.png")
"""

from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.calling import PipelineOutput
from bitdance_edge.runtime.errors import (
    BackendError,
    BitDanceError,
    BuildError,
    BundleError,
    Cancelled,
    HubError,
    OutOfMemoryError,
    RequestError,
    StorageError,
)
from bitdance_edge.runtime.events import Event, ImageDone, PatchDone, Preview
from bitdance_edge.runtime.fit import fit_mask, fit_pixels
from bitdance_edge.runtime.image import GeneratedImage, read_settings, request_from_settings, save_png
from bitdance_edge.runtime.picture import load_pixels
from bitdance_edge.runtime.pipeline import Pipeline
from bitdance_edge.runtime.request import Request

__all__ = [
    "BackendError",
    "BitDanceError",
    "BuildError",
    "Bundle",
    "BundleError",
    "Cancelled",
    "Event",
    "GeneratedImage",
    "HubError",
    "ImageDone",
    "OutOfMemoryError",
    "PatchDone",
    "Pipeline",
    "PipelineOutput",
    "Preview",
    "Request",
    "RequestError",
    "Size",
    "StorageError",
    "fit_mask",
    "fit_pixels",
    "load_pixels",
    "read_settings",
    "request_from_settings",
    "save_png",
    "written_whole",
]
