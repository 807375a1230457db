"""How much memory a generation needs, computed from the manifest alone."""

from bitdance_edge.runtime.bundle import Bundle


def generation_memory(bundle: Bundle, images: int) -> dict[str, int]:
    """Bytes by purpose to generate ``images`` guided images at once: weights, cache, the largest stage's activations.

    Guided, so two rows an image. What a backend keeps besides (copies of weights, its own workspace) is not counted.
    """
    largest = max(bundle.stages, key=lambda name: bundle.stages[name].activation_bytes)
    return {
        "weights": sum(stage.bytes for name, stage in bundle.stages.items() if name != "encoder"),
        "key-value cache": bundle.cache.bytes(2 * images),
        f"activations ({largest}, the largest)": bundle.stages[largest].activation_bytes * images,
    }
