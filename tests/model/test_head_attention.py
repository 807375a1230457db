"""The attention of the patch head against PyTorch's own multi-head attention."""

import pytest
import torch
from torch import nn

from bitdance_edge.model.head import HeadAttention


@pytest.mark.parametrize(("width", "head_dim"), [(128, 64), (256, 128), (384, 128)])
def test_heads_of_any_size_are_those_of_multi_head_attention(width: int, head_dim: int) -> None:
    torch.manual_seed(0)
    ours = HeadAttention(width, head_dim, 16)
    theirs = nn.MultiheadAttention(width, width // head_dim, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.wqkv.weight,
            "in_proj_bias": ours.wqkv.bias,
            "out_proj.weight": ours.wo.weight,
            "out_proj.bias": ours.wo.bias,
        }
    )
    x = torch.randn(3, 16, width)
    with torch.no_grad():
        torch.testing.assert_close(ours(x.flatten(0, 1)).view(x.shape), theirs(x, x, x)[0])
