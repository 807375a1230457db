from dataclasses import astuple, fields

import pytest

from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.named_recipes import RECIPES, recipe_named
from bitdance_edge.training.recipes import TokenizerRecipe, overridden


def test_settings_take_the_type_of_their_field() -> None:
    recipe = RECIPES["digits-tokenizer"]
    changed = overridden(recipe, ["steps=200", "learning_rate=1e-4", "mirror=true", "channel_multipliers=1,2,2,4"])
    assert isinstance(changed, TokenizerRecipe)
    assert (changed.steps, changed.learning_rate, changed.mirror) == (200, 1e-4, True)
    assert changed.channel_multipliers == (1, 2, 2, 4)
    assert overridden(recipe, []) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["step=5"], "no setting 'step'.*steps"),
        (["steps=many"], "steps is 'many'; write it like 1150"),
        (["mirror=maybe"], "mirror is 'maybe'; write it like false"),
        (["steps=0"], "steps is 0; it must be 1 or more"),
        (["learning_rate=-1"], "learning_rate is -1.0; it must be above 0"),
        (["ema_decay=1"], r"ema_decay is 1.0; it must be in \[0, 1\)"),
        (["bits=6"], "bits is 6; it must be a multiple of 4"),
        (["size=30"], "size is 30; it must be a multiple of the 4 pixels"),
        (["steps=60", "warmup_steps=50"], "warmup_steps is 50; it must be at most half of the 60 steps"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(settings: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        overridden(RECIPES["digits-tokenizer"], settings)


def test_the_warm_up_keeps_its_share_of_fewer_steps() -> None:
    recipe = RECIPES["digits-tokenizer"]  # 50 of 1150
    warmups = [overridden(recipe, [f"steps={steps}"]).warmup_steps for steps in (1, 2, 23, 115, 1150, 9999)]
    assert warmups == [0, 0, 1, 5, 50, 50]
    assert overridden(recipe, ["steps=100", "warmup_steps=7"]).warmup_steps == 7


def test_generator_errors_name_the_value_and_what_is_allowed() -> None:
    with pytest.raises(TrainingError, match="tokens_per_step is 8; it must be 1, 4, 16 or 64"):
        overridden(RECIPES["digits-4x"], ["tokens_per_step=8"])
    with pytest.raises(TrainingError, match=r"class_dropout is 1\.0"):
        overridden(RECIPES["digits-4x"], ["class_dropout=1"])


def test_text_recipe_errors_name_the_value_and_what_is_allowed() -> None:
    with pytest.raises(TrainingError, match="data is 'digits'; it must be shapes or given"):
        overridden(RECIPES["shapes-16x"], ["data=digits"])
    with pytest.raises(TrainingError, match="data is 'cats'; it must be one of digits, shapes, given"):
        overridden(RECIPES["shapes-tokenizer"], ["data=cats"])
    with pytest.raises(TrainingError, match="tokens_per_step is 1; it must be 4, 16 or 64"):
        overridden(RECIPES["shapes-16x"], ["tokens_per_step=1"])
    with pytest.raises(TrainingError, match=r"prompt_dropout is 1\.0"):
        overridden(RECIPES["shapes-16x"], ["prompt_dropout=1"])


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(TrainingError, match="no recipe 'digits-2x'; there are digits-tokenizer, digits-1x"):
        recipe_named("digits-2x")


ODD = ("", " ", "0", "-1", "1e23", "1" + "0" * 23, "1" + "0" * 400, "9" * 5000, "nan", "inf", "1e999", "-1e300", "two")
ODD += ("true", "None", "1,2", ",", "1,-1", "1" + ",1" * 5000, "0,0", "[1]", "\ud800", "\0", "1\n2", "a=b", "x" * 5000)


@pytest.mark.parametrize("name", RECIPES)
def test_odd_settings_are_one_error_or_a_recipe_that_can_be(name: str) -> None:
    recipe = RECIPES[name]
    for setting in [*(field.name for field in fields(recipe)), "x" * 5000]:
        for value in ODD:
            try:
                changed = overridden(recipe, [f"{setting}={value}"])
            except TrainingError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000
            else:
                assert all(abs(each) < 2**63 for each in astuple(changed) if isinstance(each, int | float))
