"""The graphs of a bundle as functions of numpy arrays, run by ONNX Runtime on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from bitdance_edge.export.widen import WidenedStage
from bitdance_edge.runtime.bundle.specs import StageSpec


class ExportedStages:
    """Stages that are loaded when they are first run."""

    def __init__(self, folder: Path, stages: dict[str, StageSpec]) -> None:
        self.folder, self.stages = folder, stages
        self.loaded: dict[str, ort.InferenceSession | WidenedStage] = {}

    def run(self, stage: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs of a stage in their order; ``feeds`` are converted to the element types of its inputs."""
        spec = self.stages[stage]
        if stage not in self.loaded:
            self.loaded[stage] = self._load(spec)
        dtypes = {tensor.name: tensor.dtype.replace("bfloat16", "float32") for tensor in spec.inputs}
        outputs = self.loaded[stage].run(None, {name: values.astype(dtypes[name]) for name, values in feeds.items()})
        return [np.asarray(output) for output in outputs]

    def takes(self, stage: str, name: str) -> bool:
        """Whether a stage has an input of this name."""
        return any(tensor.name == name for tensor in self.stages[stage].inputs)

    def unload(self) -> None:
        """Free the memory of all stages; they are loaded again when they are run again."""
        self.loaded.clear()

    def _load(self, spec: StageSpec) -> ort.InferenceSession | WidenedStage:
        path = self.folder / spec.graph.path
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if spec.precision == "bf16":
            return WidenedStage(path, options)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
