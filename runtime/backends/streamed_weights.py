"""Memory of the GPU for the weights of engines that stream them: what nothing else takes."""

from dataclasses import dataclass
from typing import Any


@dataclass
class StreamedWeights:
    """Bytes that are left for such weights; engines take of them in the order in which they load."""

    left: int = 0

    def give(self, engine: Any) -> None:
        """Let an engine keep as many of its weights on the GPU as have room; the others are copied at each launch.

        https://docs.nvidia.com/deeplearning/tensorrt/latest: ``ICudaEngine.weight_streaming_budget_v2``, which is set
        before the engine has contexts.
        """
        budget = max(0, min(self.left, int(engine.streamable_weights_size)))
        engine.weight_streaming_budget_v2 = budget
        self.left -= budget
