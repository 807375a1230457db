"""Fine-tuning of finished generators: which weights, which classes, and adapters that merge to the same model."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance_edge.commands.train import configure, run
from bitdance_edge.export.exporter import ExportOptions
from bitdance_edge.export.opening import CheckpointOptions, open_checkpoint
from bitdance_edge.model import BitDance, ModelError, load_generator, load_text_to_image, save_generator
from bitdance_edge.model.checkpoint import is_tokenizer, save_tokenizer
from bitdance_edge.training.data import digits
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.evaluate import generate
from bitdance_edge.training.finetune import Start, class_objective, classes_of, fitted, open_start
from bitdance_edge.training.generator import FlowObjective, GeneratorObjective
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.named_recipes import RECIPES
from bitdance_edge.training.recipes import FinetuneRecipe, GeneratorRecipe, TokenizerRecipe
from bitdance_edge.training.runs import RunOptions, train
from bitdance_edge.training.tokenizer import TokenizerObjective

SHAPES = Path(__file__).parents[2] / "checkpoints" / "shapes-16x"


@pytest.fixture
def recipe() -> FinetuneRecipe:
    found = RECIPES["finetune"]
    assert isinstance(found, FinetuneRecipe)
    return replace(found, steps=3, batch_size=4, warmup_steps=1, score_every=3)


@pytest.fixture
def base(generator_recipe: GeneratorRecipe, tokenizer_recipe: TokenizerRecipe, tmp_path: Path) -> Path:
    """A small generator of the digits 0 to 9 with random weights."""
    torch.manual_seed(0)
    tokenizer = TokenizerObjective(tokenizer_recipe).tokenizer
    model = GeneratorObjective(generator_recipe, tokenizer, tuple("0123456789")).model
    for parameter in model.head.parameters():  # which starts as zero, so that nothing depends on the condition
        torch.nn.init.normal_(parameter, std=0.1)
    save_generator(model, tmp_path / "base")
    return tmp_path / "base"


def folder_of(names: tuple[str, ...], folder: Path) -> Path:
    images = digits(16).images
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            Image.fromarray(images[5 * number + index].numpy()).save(folder / name / f"{index}.png")
    return folder


def drawn(model: BitDance, classes: list[int]) -> torch.Tensor:
    return generate(model, torch.tensor(classes), replace(model.config.published, steps=2), 0)


def test_known_classes_keep_their_rows_and_all_weights_but_the_tokenizers_are_trained(
    base: Path, recipe: FinetuneRecipe, tmp_path: Path
) -> None:
    data = folder_of(("7", "3"), tmp_path / "data")
    report = train(recipe, RunOptions(out=tmp_path / "tuned", data=data, start=Start(path=base), dtype=torch.float32))
    assert report["recipe"]["size"] == 16
    assert report["held_out_before"].keys() == report["held_out"].keys() == {"loss"}
    before, after = load_generator(base), load_generator(tmp_path / "tuned")
    assert after.config.class_names == tuple("0123456789")
    new = after.state_dict()
    same = {key for key, value in before.state_dict().items() if torch.equal(value, new[key])}
    assert same == {key for key in new if key.startswith("tokenizer.")}


def test_new_classes_begin_as_no_class(base: Path, recipe: FinetuneRecipe) -> None:
    model = load_generator(base)
    names = classes_of(model, ("cat", "3"))
    table = model.backbone.cls_embedding.weight.clone()
    objective = class_objective(model, fitted(recipe, model, base), names)
    assert (names, objective.model.config.num_classes) == (("cat", "3"), 2)
    assert torch.equal(objective.model.backbone.cls_embedding.weight, table[[10, 3, 10]])
    batch = ImageSet(images=digits(16).images[:2], labels=torch.tensor([0, 1]), class_names=names)
    assert isinstance(objective, FlowObjective)
    objective(*objective.inputs(batch)).backward()
    assert objective.model.backbone.cls_embedding.weight.grad is not None


def test_an_adapter_is_small_and_merges_to_the_model_that_was_trained(
    base: Path, recipe: FinetuneRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[BitDance] = []

    def keep(model: BitDance, *arguments: object) -> FlowObjective:
        trained.append(model)
        return class_objective(model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("bitdance_edge.training.runs.class_objective", keep)
    data, out = folder_of(("cat", "dog"), tmp_path / "data"), tmp_path / "lora"
    recipe = replace(recipe, lora_rank=2, learning_rate=0.05)
    train(recipe, RunOptions(out=out, data=data, start=Start(path=base), dtype=torch.float32))
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["modules_to_save"]) == ("LORA", 2, ["backbone.cls_embedding"])
    assert "backbone.layers.0.attention.wqkv" in config["target_modules"]
    assert not is_tokenizer(out)
    merged = load_generator(out)
    assert merged.config.class_names == ("cat", "dog")
    assert torch.equal(drawn(merged, [0, 1]), drawn(trained[0], [0, 1]))
    assert not torch.equal(drawn(merged, [0, 1]), drawn(load_generator(base), [0, 1]))
    opened = open_checkpoint(out, ExportOptions(name="tuned"), CheckpointOptions())
    weight = opened.weights["head.final_layer.linear.weight"]
    assert isinstance(weight, torch.Tensor) and torch.equal(weight, merged.head.final_layer.linear.weight)
    assert opened.provenance["checkpoint"] == "lora"


def test_an_adapter_whose_base_moved_or_changed_says_so(base: Path, recipe: FinetuneRecipe, tmp_path: Path) -> None:
    data, out = folder_of(("0", "1"), tmp_path / "data"), tmp_path / "lora"
    train(replace(recipe, lora_rank=2), RunOptions(out=out, data=data, start=Start(path=base)))
    with pytest.raises(TrainingError, match="is an adapter"):
        train(recipe, RunOptions(out=tmp_path / "again", data=data, start=Start(path=out)))
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"base is not the checkpoint that this adapter was trained on"):
        load_generator(out)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"base_model_name_or_path is .*base, which is not there; correct the path"):
        load_generator(out)


@pytest.mark.parametrize("rank", [0, 4])
def test_text_to_image_is_fine_tuned_on_captions(rank: int, recipe: FinetuneRecipe, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text("a red circle to the left of a blue square", encoding="utf-8")
    recipe = replace(recipe, lora_rank=rank, steps=2, score_every=2, learning_rate=0.01)
    options = RunOptions(out=tmp_path / "tuned", data=data, start=Start(path=SHAPES), dtype=torch.float32)
    report = train(recipe, options)
    assert report["recipe"]["size"] == 64
    before, after = load_text_to_image(SHAPES).state_dict(), load_text_to_image(tmp_path / "tuned").state_dict()
    changed = {key.split(".")[0] for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == ({"backbone", "head"} if rank else {"backbone", "head", "projector"})
    if rank:
        opened = open_checkpoint(tmp_path / "tuned", ExportOptions(name="tuned", precision="fp32"), CheckpointOptions())
        key = "backbone.layers.0.self_attn.q_proj.weight"
        weight = opened.weights[key]
        assert not isinstance(weight, torch.Tensor)
        assert not opened.options.link
        assert torch.equal(weight.read().float(), after[key])


def test_another_tokenizer_takes_the_place_of_the_checkpoints_own(
    base: Path, recipe: FinetuneRecipe, tokenizer_recipe: TokenizerRecipe, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = TokenizerObjective(tokenizer_recipe).tokenizer
    save_tokenizer(other, tmp_path / "other", torch.float32)
    start, data = Start(path=base, tokenizer=str(tmp_path / "other")), folder_of(("0", "1"), tmp_path / "data")
    for rank in (0, 2):
        out = tmp_path / f"rank-{rank}"
        train(replace(recipe, lora_rank=rank), RunOptions(out=out, data=data, start=start, dtype=torch.float32))
        found = load_generator(out).tokenizer.state_dict()
        assert all(torch.equal(value, found[key]) for key, value in other.state_dict().items())
    assert start.digest() != Start(path=base).digest()
    with pytest.raises(TrainingError, match="takes prompts and has its own tokenizer; omit --tokenizer"):
        open_start(replace(start, path=SHAPES))


def test_errors_say_what_to_give(base: Path, recipe: FinetuneRecipe, tmp_path: Path) -> None:
    def command(*arguments: object) -> None:
        parser = argparse.ArgumentParser()
        configure(parser)
        run(parser.parse_args([*map(str, arguments), "--out", str(tmp_path / "out")]))

    with pytest.raises(TrainingError, match=r"give a recipe, one of .*or --init"):
        command()
    with pytest.raises(TrainingError, match="--init is for the recipe finetune"):
        command("digits-4x", "--init", base)
    with pytest.raises(TrainingError, match="give --init"):
        command("finetune")
    with pytest.raises(TrainingError, match="no data of its own; give --data"):
        command("--init", base)
    with pytest.raises(TrainingError, match=r"--size is 32; the square sizes of .*base are 16"):
        command("--init", base, "--size", 32, "--data", tmp_path)
