"""The windowed sampler of an exported bundle, measured: its tolerance, sweeps and flips, written into the manifest."""

from dataclasses import replace

from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.window_measure import measured_window


def with_measured_window(bundle: Bundle, patches: int) -> Bundle:
    """Measure on the CPU, and write the manifest into the bundle's folder."""
    replace(bundle, window=measured_window(bundle, patches)).write()
    return Bundle.open(bundle.folder)
