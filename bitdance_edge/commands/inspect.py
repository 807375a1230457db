"""``bitdance-edge inspect``: what a bundle holds, how exact it is, what it needs, what runs it; what an engine is."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from bitdance_edge.commands.inspect_json import inspection
from bitdance_edge.commands.values import flags, path, whole
from bitdance_edge.installation import as_typed
from bitdance_edge.runtime import BuildError, Bundle, RequestError
from bitdance_edge.runtime.backends.choice import survey
from bitdance_edge.runtime.bundle.record import built_folders, records
from bitdance_edge.runtime.bundle.specs import SamplingSpec, TensorSpec
from bitdance_edge.runtime.bundle.stage_names import STAGE_WIDTH
from bitdance_edge.runtime.memory_fit import fitted, least_memory, parse_memory, refusal
from bitdance_edge.runtime.memory_plan import SESSIONS, plan_memory
from bitdance_edge.runtime.request import MAX_COUNT
from bitdance_edge.runtime.values import quoted
from bitdance_edge.streams import one_line

EXAMPLE = """examples:
  bitdance-edge inspect bundles/digits-4x
  bitdance-edge inspect bundles/B-4x --images 8 --memory 16GB --verify
  bitdance-edge inspect bundles/B-4x/targets/rtx/head.engine
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What a bundle holds, its errors against PyTorch, and the memory it needs; or what a build was made of."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("bundle", type=path, help="bundle folder or .tar, or a build of it: an .engine or .onnx")
    parser.add_argument("--images", type=whole(1, MAX_COUNT), default=1, help="images that run together (default 1)")
    parser.add_argument("--memory", metavar="SIZE", help="of a GPU: say whether it fits there, and what would (16GB)")
    parser.add_argument("--json", action="store_true", help="print what the bundle holds and needs as one JSON object")
    parser.add_argument("--verify", action="store_true", help="check every file against its SHA-256")


def run(args: argparse.Namespace) -> None:
    if args.bundle.suffix in (".engine", ".onnx"):
        if given := flags(name for name in ("memory", "json", "verify") if getattr(args, name)):
            raise RequestError(f"{args.bundle} is a file of a build, and {given} is about bundles: omit it")
        from bitdance_edge.engines.reports.inspection import describe_build

        print("\n".join(describe_build(args.bundle)))
        return
    bundle = Bundle.open(args.bundle)
    if args.json and args.memory:
        raise RequestError("--json says what the bundle needs, whatever --memory is: omit one of them")
    if args.json:
        _verify(bundle, args.verify)
        print(json.dumps(inspection(bundle, args.images), indent=1))
        return
    memory = _memory(bundle, args.images, args.memory)
    for section in (_model(bundle), _stages(bundle), memory, _builds(bundle), _backends(bundle), _provenance(bundle)):
        print(as_typed("\n".join(map(one_line, section))), end="\n\n")
    if _verify(bundle, args.verify):
        print(f"all files of {len(bundle.stages)} stages are those of the manifest")


def _verify(bundle: Bundle, asked: bool) -> bool:
    """Check every file of the stages where that is asked; returns whether it was."""
    if asked:
        from tqdm import tqdm

        for name in tqdm(bundle.stages, "checking", unit="stage", leave=False, disable=None):
            bundle.verified(name)
    return asked


def _model(bundle: Bundle) -> Iterator[str]:
    model, sampling = bundle.model, bundle.sampling
    text = bundle.text
    if not model.generates:
        yield f"{bundle.name}: {model.kind}, {model.pixels_per_token} pixels a token of {model.bits} bits"
        for pixels in model.sizes:
            size = model.size(pixels)
            yield f"  {size!s:11} {size.grid_width}x{size.grid_height} tokens, {size.tokens * model.bits} bits an image"
        yield f"  opset       {bundle.opset}"
        return
    subject = f"{model.num_classes} classes" if text is None else f"prompts of up to {text.max_prompt} tokens"
    yield f"{bundle.name}: {model.kind}, {subject}"
    if text is not None:
        yield f"  example     {text.example}"
    for pixels in model.sizes:
        size = model.size(pixels)
        grid = f"{size.grid_width}x{size.grid_height} tokens of {model.bits} bits"
        yield f"  {size!s:11} {grid}, {model.tokens_per_step} a step, {size.patches} steps an image"
    yield f"  sampling    {_sampling(sampling)}"
    published = "the same" if bundle.published_sampling == sampling else _sampling(bundle.published_sampling)
    yield f"  published   {published}"
    yield f"  previews    {'full' if bundle.fast_preview is None else 'full, fast'}"
    yield from _window(bundle)
    yield f"  opset       {bundle.opset}"


def _window(bundle: Bundle) -> Iterator[str]:
    """What is known of sampling in windows: its tolerance, and what was measured with it."""
    if bundle.window is None:
        yield "  windows     none: the bundle was exported without the windowed sampler"
        return
    runs = bundle.window.runs
    compared, flipped = sum(run.bits for run in runs), sum(run.flipped for run in runs)
    measured = f"{flipped} of {compared} bits flipped" if runs else "not measured"
    yield f"  windows     states settle within {bundle.window.tolerance:g}; {measured}"
    for sampler, steps in dict.fromkeys((run.sampler, run.steps) for run in runs):
        each = (run for run in runs if (run.sampler, run.steps) == (sampler, steps))
        sweeps = ", ".join(f"{run.sweeps:g} in windows of {run.window}" for run in each)
        yield f"    {sampler}, {steps} steps: {steps + 1} evaluations of the head one by one, or sweeps: {sweeps}"


def _sampling(sampling: SamplingSpec) -> str:
    guidance = f"guidance {sampling.guidance:g} ({sampling.guidance_schedule})"
    return f"{sampling.steps} steps a patch ({sampling.sampler}), {guidance}"


def _stages(bundle: Bundle) -> Iterator[str]:
    yield f"{'stage':{STAGE_WIDTH}} {'MB':>9}  {'dtype':5}  {'error':>8}  {'allowed':>8}  inputs -> outputs"
    for name, stage in bundle.stages.items():
        error, allowed = (
            ("not run", "-") if stage.max_error is None else (f"{stage.max_error:.1e}", f"{stage.tolerance:.0e}")
        )
        yield (
            f"{name:{STAGE_WIDTH}} {stage.bytes / 1e6:9.2f}  {stage.precision:5}  {error:>8}  {allowed:>8}  "
            f"{_tensors(stage.inputs)} -> {_tensors(stage.outputs)}"
        )
    yield "error: largest seen at export, ONNX Runtime against PyTorch, relative to the largest value (pixels: to 255)"
    if "calibrated_from" in bundle.provenance:
        yield "of calibrated stages: largest seen at calibration, against the stage as exported"


def _tensors(tensors: tuple[TensorSpec, ...]) -> str:
    shown = [
        f"{t.name}[{','.join(map(str, t.shape))}]"
        for t in tensors
        if not t.name.startswith(("past_key_values.", "present."))
    ]
    return " ".join(shown) + (" +cache" if len(shown) < len(tensors) else "")


def _memory(bundle: Bundle, images: int, memory: str | None) -> Iterator[str]:
    plan, sessions = plan_memory(bundle, images), plan_memory(bundle, images, SESSIONS)
    what = f"{images} guided image{'s' if images > 1 else ''}" if bundle.model.generates else f"or decode {images}"
    yield f"memory of a GPU to {'generate' if bundle.model.generates else 'encode'} {what} at once, with engines"
    if memory is not None:
        free = parse_memory(memory)
        fitting = fitted(plan, free)
        yield from (fitting or plan).table()
        if fitting is not None:
            yield f"fits into {memory}: {(free - fitting.total) / 1e6:.0f} MB are left"
        else:
            yield f"does not fit into {memory}: {refusal(bundle, images, free)}"
        fitting = fitted(sessions, free)
        sessions = fitting or least_memory(sessions)
        fits = f"{'fits' if fitting else 'does not fit'} into {memory}, "
    else:
        yield from plan.table()
        fits = ""
    yield (
        f"with ONNX Runtime on CUDA: {fits}{sessions.total / 1e6:.0f} MB; its stages share no memory for activations, "
        f"and {sessions.allowance / 1e6:.0f} MB are set aside"
    )
    yield "activations: as if the graph ran node by node, an upper bound where operators are fused"


def _builds(bundle: Bundle) -> Iterator[str]:
    yield "built"
    folders = built_folders(bundle)
    for folder in folders:
        try:
            built = list(records(folder))
        except BuildError as error:
            yield f"  {folder.name}: {error}"
            continue
        stages = ", ".join(record.stage for record in built)
        for_what = (
            f"{built[0].target} with {built[0].library} {built[0].library_version}".rstrip() if built else folder.name
        )
        yield f"  {for_what}: {stages or 'nothing'}, {sum(record.bytes for record in built) / 1e6:.1f} MB"
    if not folders:
        yield f"  nothing yet; for this processor: bitdance-edge build {quoted(bundle.folder)} --target cpu"


def _backends(bundle: Bundle) -> Iterator[str]:
    yield "backends on this machine"
    yield from (f"  {line}" for line in survey(bundle))


def _provenance(bundle: Bundle) -> Iterator[str]:
    if shared := bundle.shared_files():
        yield f"shared with its checkpoint ({Path(bundle.links[shared[0]]).parent}) as hard links, so change neither:"
        yield f"  {', '.join(Path(name).name for name in shared)}"
        yield f"bitdance-edge pack {quoted(bundle.folder)} --in-place makes the bundle self-contained"
        yield ""
    yield "provenance"
    for name, value in bundle.provenance.items():
        if value is None:  # a checkpoint that is of no published variant
            continue
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        yield f"  {name:20} {text}"
