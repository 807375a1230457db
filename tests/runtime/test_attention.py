import numpy as np
import pytest

from bitdance_edge.runtime.attention import AttentionWindow


@pytest.mark.parametrize("padding", [[0], [0, 0], [0, 3], [5, 2]])
@pytest.mark.parametrize("block", [1, 4, 16])
def test_a_patch_behind_the_prompt_sees_what_any_pass_would(block: int, padding: list[int]) -> None:
    window = AttentionWindow(block, 60, np.array(padding))
    for start in range(5, 60 - block + 1):
        np.testing.assert_array_equal(window.patch_positions(start), window.positions(start, block))
        wanted = window.mask(start, block)
        np.testing.assert_array_equal(np.broadcast_to(window.patch_mask(start), wanted.shape), wanted)
