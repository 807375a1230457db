from dataclasses import replace

import pytest
import torch
from torch import nn

from bitdance_edge.training.generator import GeneratorObjective
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.recipes import GeneratorRecipe, TokenizerRecipe
from bitdance_edge.training.schedule import Average, learning_rate, parameter_groups
from bitdance_edge.training.tokenizer import TokenizerObjective


def test_learning_rate_warms_up_stays_and_decays_to_zero(tokenizer_recipe: TokenizerRecipe) -> None:
    recipe = replace(tokenizer_recipe, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = {step: learning_rate(recipe, step) for step in (0, 4, 10, 50, 75, 100)}
    assert rates == pytest.approx({0: 0.1, 4: 0.5, 10: 1.0, 50: 1.0, 75: 0.5, 100: 0.0})


def test_learning_rate_without_warm_up_starts_at_its_value(tokenizer_recipe: TokenizerRecipe) -> None:
    assert learning_rate(replace(tokenizer_recipe, warmup_steps=0), 0) == tokenizer_recipe.learning_rate


def test_embeddings_and_vectors_do_not_decay(
    generator_recipe: GeneratorRecipe, tokenizer_recipe: TokenizerRecipe, small_digits: tuple[ImageSet, ImageSet]
) -> None:
    tokenizer = TokenizerObjective(tokenizer_recipe).tokenizer
    objective = GeneratorObjective(generator_recipe, tokenizer, small_digits[0].class_names)
    decayed, kept = parameter_groups(objective, 0.02)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.02, 0.0)
    group = {
        id(parameter): name
        for name, members in (("decayed", decayed), ("kept", kept))
        for parameter in members["params"]
    }
    backbone, head = objective.model.backbone, objective.model.head
    assert {
        group[id(parameter)]
        for parameter in (
            backbone.proj_in.w1.weight,
            backbone.cls_embedding.weight,
            backbone.query_token,
            backbone.norm.weight,
            head.input_proj.bias,
        )
    } == {"kept"}
    assert {
        group[id(parameter)]
        for parameter in (head.input_proj.weight, backbone.pos_for_diff.weight, head.final_layer.linear.weight)
    } == {"decayed"}
    assert not any(id(parameter) in group for parameter in objective.model.tokenizer.parameters())


def test_the_average_follows_the_weights_and_is_put_in_and_out() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = Average(network, decay=0.9)
    nn.init.constant_(network.weight, 1.0)
    average.update(step=0)  # the early decay is a tenth
    assert average.weights["weight"].item() == pytest.approx(0.9)
    average.update(step=1000)
    assert average.weights["weight"].item() == pytest.approx(0.91)
    with average.applied():
        assert network.weight.item() == pytest.approx(0.91)
    assert network.weight.item() == 1.0
    average.store()
    assert torch.equal(network.weight.detach(), average.weights["weight"])
