"""inspect, profile and compare: what an engine is, where its time goes, and where backends part."""

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_fixtures import CHECKPOINT
from onnx import numpy_helper
from PIL import Image

from bitdance_edge.cli import main
from bitdance_edge.engines.graph import read_graph
from bitdance_edge.engines.reports.chart import MOST_ROWS, bar_chart
from bitdance_edge.engines.reports.compare import compare_stage
from bitdance_edge.engines.reports.layer_times import layer_table, module_times, read_layer_times
from bitdance_edge.engines.reports.layers import module_of, nodes_of
from bitdance_edge.engines.reports.trtexec import profile_runs, write_inputs
from bitdance_edge.engines.samples import SAMPLES, record_samples
from bitdance_edge.engines.targets import parse_engine_target, parse_target
from bitdance_edge.model import BitDance, load_generator
from bitdance_edge.runtime import BuildError, Bundle
from bitdance_edge.runtime.backends.device import find_device
from bitdance_edge.runtime.bundle.record import BuildRecord
from bitdance_edge.runtime.bundle.stage_names import WINDOW_STAGES

Digits = Callable[[str], Bundle]
Built = Callable[[str], dict[str, BuildRecord]]


@pytest.fixture(scope="session")
def samples(digits: Digits) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    return record_samples(digits("fp32"))


@pytest.fixture(scope="session")
def model() -> BitDance:
    return load_generator(CHECKPOINT)


def test_inspect_says_what_an_engine_is(built_copy: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    engine = built_copy.folder / "targets/rtx/backbone.engine"
    assert main(["inspect", str(engine)]) == 0
    output = capsys.readouterr().out
    for expected in ("backbone for rtx", "profile prompt", "KV_CACHE_UPDATE", "SHA-256", "whole: size and SHA-256"):
        assert expected in output
    if find_device() is None:
        assert "no driver answers here" in output
    engine.write_bytes(engine.read_bytes()[:-1])
    main(["inspect", str(engine)])
    assert "truncated or altered" in capsys.readouterr().out
    assert main(["inspect", str(engine.with_name("nothing.engine"))]) == 1
    assert "nothing at" in capsys.readouterr().err


def test_samples_are_those_of_a_real_step(digits: Digits, samples: dict) -> None:
    model, cache = digits("fp32").model, digits("fp32").cache
    assert {stage for stage, _ in samples} == set(digits("fp32").stages)
    assert {(stage, name) for stage, names in SAMPLES.items() for name in names} == samples.keys()
    patch = samples["backbone", "patch"]
    assert patch["embeddings"].shape[:2] == (2, model.tokens_per_step)
    assert (patch["cache_position"] == model.prompt_tokens).all()
    assert patch["past_key_values.0.key"][:, :, : model.prompt_tokens].any()
    assert not patch["past_key_values.0.key"][:, :, model.prompt_tokens :].any()
    assert patch["mask"].shape == (2, 1, model.tokens_per_step, cache.length)
    # Of the second patch: both rows share their noise.
    assert samples["head", "all"]["x"].shape[0] == 1
    assert samples["head", "all"]["rows"].tolist() == [0, 0]
    assert set(np.unique(samples["decoder", "all"]["tokens"])) == {-1.0, 1.0}


def test_profile_commands_have_shapes_profile_and_inputs(
    digits: Digits, built: Built, samples: dict, tmp_path: Path
) -> None:
    bundle = digits("fp32")
    built("fp32")
    files = write_inputs(tmp_path, samples)
    runs = {
        (run.stage, run.sample): run
        for run in profile_runs(bundle, parse_engine_target("rtx"), samples, files, tmp_path)
    }
    command = runs["backbone", "patch"].command
    assert command[0] == "tensorrt_rtx"
    assert f"--loadEngine={bundle.folder}/targets/rtx/backbone.engine" in command
    assert "--useProfile=1" in command
    assert any(part.startswith("--shapes=embeddings:2x4x128,positions:2x4,") for part in command)
    assert files["head", "all"]["x"].stat().st_size == samples["head", "all"]["x"].nbytes
    unbuilt = profile_runs(bundle, parse_engine_target("trt:current"), samples, files, tmp_path)
    command = next(run.command for run in unbuilt if (run.stage, run.sample) == ("backbone", "prompt"))
    assert command[0] == "trtexec"
    assert f"--onnx={bundle.folder}/onnx/fp32/backbone.onnx" in command
    assert "--stronglyTyped" in command
    assert any(part.startswith("--minShapes=embeddings:1x7x128,") for part in command)


# Stands in for the profiler where there is none: writes what trtexec writes, for the nodes of the graph it is given.
PROFILER = """#!{python}
import json, sys
options = dict(part.split("=", 1) for part in sys.argv[1:] if "=" in part)
for name in options["--loadInputs"].split(","):
    open(name.split(":", 1)[1], "rb").close()
nodes = {nodes}
layers = [{{"Name": f"fused {{node}}", "Metadata": f"[ONNX Layer: {{node}}]"}} for node in nodes]
times = [{{"name": layer["Name"], "averageMs": 0.5 + i}} for i, layer in enumerate(layers)]
json.dump([{{"count": 10}}, *times], open(options["--exportProfile"], "w"))
json.dump({{"Layers": layers}}, open(options["--exportLayerInfo"], "w"))
sys.exit({status})
"""


def profiler(folder: Path, nodes: list[str], status: int = 0) -> None:
    program = folder / "tensorrt_rtx"
    program.write_text(PROFILER.format(python=sys.executable, nodes=nodes, status=status))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_profile_runs_the_profiler_and_joins_modules(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = digits("fp32")
    facts = read_graph(bundle.folder / bundle.stages["head"].graph.path)
    profiler(tmp_path, [node for node, module in facts.modules.items() if module.startswith("head.res_blocks")])
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert main(["profile", str(bundle.folder), "--out", str(tmp_path / "out"), "--layers", "3"]) == 0
    output = capsys.readouterr().out
    assert "head.res_blocks.2" in output
    assert "backbone (patch): " in output
    for name in ("head-all", "backbone-prompt", "backbone-patch", "decoder-all"):
        with Image.open(tmp_path / "out" / f"{name}.png") as chart:
            assert chart.height > 40
    script = (tmp_path / "out" / "profile.sh").read_text()
    assert script.count("\ntensorrt_rtx ") == len([name for names in SAMPLES.values() for name in names])
    profiler(tmp_path, [], status=3)
    assert main(["profile", str(bundle.folder), "--out", str(tmp_path / "out")]) == 1
    assert "tensorrt_rtx ended with status 3; what it said is in" in capsys.readouterr().err


def test_without_a_profiler_the_commands_are_written(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["profile", str(digits("fp32").folder), "--target", "trt:current", "--out", str(tmp_path)]) == 0
    assert "trtexec is not on this machine's PATH" in capsys.readouterr().out
    assert "trtexec --onnx=" in (tmp_path / "profile.sh").read_text()


def test_layers_belong_to_the_innermost_module_that_holds_their_nodes(digits: Digits, tmp_path: Path) -> None:
    bundle = digits("fp32")
    facts = read_graph(bundle.folder / bundle.stages["head"].graph.path)
    modules = {module: node for node, module in facts.modules.items()}
    one, other = modules["head.res_blocks.0.w1"], modules["head.res_blocks.0.w2"]
    metadata = f"[ONNX Layer: {one}]\x1e[ONNX Layer: {other}]\x1e[ONNX Layer: made_up]"
    assert nodes_of("kernel", metadata, facts) == [one, other]
    assert module_of([one, other], facts) == "head.res_blocks.0"
    assert nodes_of(f"{one}+{other}", "", facts) == [one, other]
    assert module_of([], facts) == ""
    (tmp_path / "times.json").write_text(
        json.dumps([{"count": 2}, {"name": "a", "averageMs": 1.0}, {"name": one, "averageMs": 3.0}])
    )
    (tmp_path / "layers.json").write_text(json.dumps({"Layers": ["a", one]}))
    layers = read_layer_times(tmp_path / "times.json", tmp_path / "layers.json", facts)
    assert [layer.module for layer in layers] == ["head.res_blocks.0.w1", ""]
    assert list(module_times(layers)) == ["head.res_blocks.0.w1", "(none)"]
    assert "75.00" in list(layer_table(layers))[1]
    (tmp_path / "times.json").write_text("[{")
    with pytest.raises(BuildError, match="are not the profile and layers of trtexec"):
        read_layer_times(tmp_path / "times.json", tmp_path / "layers.json", facts)


def test_chart_has_a_bar_a_row() -> None:
    few = bar_chart("title", {"a": 2.0, "b": 1.0}, "ms")
    many = bar_chart("title", {f"module {i}": 1.0 for i in range(100)}, "ms")
    assert few.height < many.height == bar_chart("title", {str(i): 1.0 for i in range(MOST_ROWS)}, "ms").height
    lengths = [sum(few.getpixel((x, y)) == (76, 120, 168) for x in range(few.width)) for y in range(few.height)]
    assert max(lengths) == pytest.approx(2 * min(length for length in lengths if length > 1), abs=2)


@pytest.mark.parametrize(("stage", "sample"), [(stage, name) for stage, names in SAMPLES.items() for name in names])
def test_backends_agree_module_by_module(
    digits: Digits, samples: dict, model: BitDance, stage: str, sample: str
) -> None:
    bundle = digits("fp32")
    comparison = compare_stage(bundle, parse_target("rtx:8.9"), model, stage, sample, samples[stage, sample])
    assert comparison.first_diverging("pytorch - onnxruntime") is None, list(comparison.lines())
    found, outputs = len(comparison.differences["pytorch - onnxruntime"]), len(bundle.stages[stage].outputs)
    assert found == outputs if stage in WINDOW_STAGES else found > outputs  # those have no modules within
    assert "nothing was built for rtx:8.9: bitdance-edge build" in comparison.omitted["rtx:8.9"]


def spoilt(bundle: Bundle, weight: str, factor: float) -> None:
    """Scale one weight of the head; the manifest is told, so that the file passes for what was exported."""
    from dataclasses import replace

    from bitdance_edge.runtime.bundle.manifest import file_spec

    spec = bundle.stages["head"]
    path = bundle.folder / spec.graph.path
    graph = onnx.load(path)
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(factor), weight))
    onnx.save(graph, path, save_as_external_data=False)
    changed = replace(spec, graph=file_spec(bundle.folder, path), weights=())
    replace(bundle, stages={**bundle.stages, "head": changed}).write()


@pytest.mark.parametrize(("factor", "said"), [(-1.0, "error"), (float("nan"), "not finite from index [0, 0]")])
def test_compare_names_the_first_module_that_differs(
    built_copy: Bundle, factor: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt(built_copy, "head.res_blocks.1.w1.bias", factor)
    arguments = ["compare", str(built_copy.folder), "--checkpoint", str(CHECKPOINT), "--stages", "head"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "of module head.res_blocks.1.w1" in captured.out
    assert said in captured.out
    assert "backends differ in head" in captured.err


def test_compare_without_a_checkpoint_still_finds_nan(built_copy: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(built_copy.folder), "--stages", "head"]) == 0
    assert "pytorch omitted: give its checkpoint with --checkpoint" in capsys.readouterr().out
    spoilt(built_copy, "head.res_blocks.1.w1.bias", float("nan"))
    assert main(["compare", str(built_copy.folder), "--stages", "head"]) == 1
    assert "of module head.res_blocks.1.w1" in capsys.readouterr().out
