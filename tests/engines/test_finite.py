"""A bundle whose own graphs make values that are not finite is not built, though pixels and bits hide them."""

from pathlib import Path

import numpy as np
import pytest
from building import build
from calibrating import altered

from bitdance_edge.engines.failure import BuildFailure
from bitdance_edge.runtime import Bundle


@pytest.mark.parametrize(
    ("stage", "weight", "built", "module"),
    [
        ("decoder", "tokenizer.decoder.conv_in.bias", "decoder", r"tokenizer\.decoder\.conv_in"),
        ("encoder", "tokenizer.encoder.conv_out.bias", "encoder", r"tokenizer\.encoder\.conv_out"),
        ("head", "head.input_proj.bias", "decoder", r"head\.input_proj"),  # found whatever is built
    ],
)
def test_the_first_module_is_named(
    stage: str, weight: str, built: str, module: str, bundle: Bundle, tmp_path: Path
) -> None:
    spoiled = altered(bundle, tmp_path / "spoiled", stage, weight, lambda values: values * np.float32("nan"))
    with pytest.raises(BuildFailure, match=rf"{stage}: the bundle's own graph .* not finite, the first in {module}"):
        build(spoiled, "cpu", [built])
