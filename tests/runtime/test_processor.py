"""Which INT8 arithmetic a processor gets."""

from pathlib import Path

import pytest

from bitdance_edge.runtime.backends import processor
from bitdance_edge.runtime.backends.onnxruntime import cpu_options


@pytest.mark.parametrize(
    ("machine", "flags", "widened", "named"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False, "AVX-512 VNNI"),
        ("x86_64", "fpu avx2 avx_vnni", False, "AVX VNNI"),
        ("x86_64", "fpu avx512_vnni amx_int8", False, "AMX"),
        ("x86_64", "fpu avx2", True, "saturate"),
        ("x86_64", None, True, "does not say"),
        ("aarch64", "", False, "aarch64"),
    ],
)
def test_weights_are_widened_where_sums_would_saturate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, flags: str | None, widened: bool, named: str
) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n", encoding="utf-8")
    path = processor.int8_path()
    assert path.widened == widened
    assert named in path.why
    options = cpu_options(1, "int8")
    assert _entry(options) == ("1" if widened else None)
    assert _entry(cpu_options(1, "fp32")) is None


def _entry(options) -> str | None:
    try:
        return options.get_session_config_entry("session.x64quantprecision")
    except RuntimeError:  # there is none
        return None
