"""Growth with patches: ratios to the first point, what each further operation costs, the line through all."""

import pytest

from bitdance_edge.bench.studies.scaling import scaling, table


def rows() -> list[dict[str, float]]:
    """An image with 2 s and 8 G operations once, and 3 s and 6 G operations each patch."""
    return [
        {"images": 1, "patches": n, "wall": 2.0 + 3 * n, "cpu": 2.0 + 3 * n, "operations": (8 + 6 * n) * 10**9}
        for n in (4, 8, 16)
    ]


def test_what_is_there_once_shows_in_the_whole_and_not_in_what_is_added() -> None:
    found = scaling(rows(), "patches")
    assert [row["cpu_ratio"] for row in found["rows"]] == pytest.approx([1, 26 / 14, 50 / 14])
    assert [row["operations_ratio"] for row in found["rows"]] == pytest.approx([1, 56 / 32, 104 / 32])
    assert "added_cpu_per_operation" not in found["rows"][0]
    assert [row["added_cpu_per_operation"] for row in found["rows"][1:]] == pytest.approx([0.5e-9, 0.5e-9])
    assert found["line"]["seconds_each"] == pytest.approx(3)
    assert found["line"]["seconds_at_zero"] == pytest.approx(2)


def test_the_table_has_a_cell_for_every_head() -> None:
    grown = scaling(rows(), "patches")
    found = {"bundle": "b", "steps": 5, "threads": 1, "rounds": 3, "images": scaling(rows()[:1], "images")}
    lines = [line for line in table({**found, "patches": grown}) if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| 16 | 50 | 50 | 104 |" in lines[-1] and lines[-1].endswith("| 500 |")
