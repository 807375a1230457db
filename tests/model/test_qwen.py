"""The language model against the implementation it was published with."""

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3Model

from bitdance_edge.model import QwenConfig
from bitdance_edge.model.qwen import QwenBackbone


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 16), (4, 2, 32), (6, 1, 8)])
def test_hidden_states_are_those_of_transformers(heads: int, kv_heads: int, head_dim: int) -> None:
    torch.manual_seed(0)
    published = Qwen3Config(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
    )
    theirs = Qwen3Model(published).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = QwenBackbone(QwenConfig.from_json(published.to_dict()))
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(50, (2, 20))
    cos, sin = ours.rotary(20)

    def attend(_layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        queries, keys = ours.rotate(queries, cos, sin), ours.rotate(keys, cos, sin)
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)

    with torch.no_grad():
        hidden = ours.hidden(ours.embed_tokens(ids), attend)
        torch.testing.assert_close(hidden, theirs(ids).last_hidden_state, rtol=1e-4, atol=1e-5)
