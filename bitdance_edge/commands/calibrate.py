"""``bitdance-edge calibrate``: a bundle in INT8, FP8 or with 4-bit weights, and a report of what it lost."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitdance_edge.commands.common import add_size_argument, add_threads_argument, example_subject, expand_classes, say
from bitdance_edge.commands.values import number, path, percentage, text, whole
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.request import MAX_COUNT, MAX_GUIDANCE, MAX_STEPS

if TYPE_CHECKING:
    from bitdance_edge.calibration.calibrate import CalibrateOptions
    from bitdance_edge.calibration.recipe import CalibrationRecipe
    from bitdance_edge.runtime import Bundle

STAGES = (  # all with layers to quantise
    StageName.TOKENS,
    StageName.TIME,
    StageName.BACKBONE,
    StageName.MODULATION,
    StageName.HEAD,
    StageName.DECODER,
    StageName.ENCODER,
)
BUDGET_MISSED = 3  # exit status: the bundle is written, but more bits flip than --max-bit-flips allows
EXAMPLE = """examples:
  bitdance-edge calibrate bundles/digits-4x --precision int8 -o bundles/digits-4x-int8
  bitdance-edge calibrate bundles/B-4x --precision int8 --max-bit-flips 0.5% -o bundles/B-4x-int8
  bitdance-edge calibrate bundles/B-4x --head fp8 --backbone int4 -o bundles/B-4x-mixed --target rtx:8.9
  bitdance-edge calibrate bundles/tuned --recipe bundles/B-4x-int8/calibration/recipe.json -o bundles/tuned-int8
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Quantise a bundle's stages on inputs of its own generations, and measure what was lost. The result is a "
        "bundle like any other, with the report in its folder calibration/. Where a budget of bit flips holds on the "
        f"images of the search and not on the test images, the exit status is {BUDGET_MISSED}."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("bundle", type=path, help="bundle folder, as made by: bitdance-edge export")
    parser.add_argument("-o", "--out", type=path, metavar="FOLDER", required=True, help="the calibrated bundle")
    parser.add_argument("--force", action="store_true", help="replace a bundle of that name")
    what = parser.add_argument_group("what")
    what.add_argument("--precision", metavar="P", help="of all stages: int8, fp8 or int4 (4-bit weights)")
    for stage in STAGES:
        what.add_argument(f"--{stage}", metavar="P", help=f"of the {stage}; the bundle's own type keeps it as exported")
    what.add_argument(
        "--recipe", type=path, metavar="FILE", help="all choices, from an earlier calibration (recipe.json)"
    )
    what.add_argument(
        "--max-bit-flips", type=percentage, metavar="PERCENT", help="keep sensitive layers as exported until this holds"
    )
    what.add_argument("--target", help="GPUs it is meant for (rtx, rtx:8.9, ...); what they cannot run is refused")
    how = parser.add_argument_group("how scales are chosen")
    how.add_argument("--calibrator", help="max, percentile, entropy or mse (default mse)")
    how.add_argument(
        "--percentile", type=number(50, 100), metavar="Q", help="of the percentile calibrator (default 99.99)"
    )
    how.add_argument(
        "--smooth", type=number(0, 1), metavar="A", help="SmoothQuant of this strength, 0 to 1 (default: none)"
    )
    how.add_argument("--flat-times", action="store_true", help="weigh all sampling times the same")
    draw = parser.add_argument_group("which images")
    draw.add_argument("--images", type=whole(1, MAX_COUNT), help="images recorded (default 8)")
    draw.add_argument(
        "--seed", type=whole(0), help="of the recorded images; the held-out ones follow from it (default 0)"
    )
    draw.add_argument("--classes", type=text, help="ids or names: 3,7 or 0-9 (default: all, in a seeded order)")
    draw.add_argument("--prompts", type=path, metavar="FILE", help="of a text-to-image bundle: one prompt a line")
    add_size_argument(parser)
    draw.add_argument("--steps", type=whole(1, MAX_STEPS), help="sampling steps of each patch (default: the bundle's)")
    draw.add_argument("--guidance", type=number(1, MAX_GUIDANCE), help="(default: the bundle's)")
    draw.add_argument("--patches", type=whole(1), help="only the first patches of each image, for large models")
    draw.add_argument("--data", type=path, metavar="FOLDER", help="recordings (default: calibration/ in the bundle)")
    report = parser.add_argument_group("report")
    report.add_argument(
        "--held-out", type=whole(1, MAX_COUNT), default=8, metavar="N", help="images for stages and layers (8)"
    )
    report.add_argument(
        "--search-images", type=whole(1, MAX_COUNT), default=32, metavar="N", help="images for the budget search (32)"
    )
    report.add_argument(
        "--test-images", type=whole(1, MAX_COUNT), default=64, metavar="N", help="images for bits and PSNR (64)"
    )
    report.add_argument("--no-sensitivity", action="store_true", help="omit what each layer costs alone")
    report.add_argument("--features", type=path, metavar="ONNX", help="network that judges images (see docs/quality)")
    report.add_argument("--references", type=path, metavar="FOLDER", help="real images for the Fréchet distance")
    report.add_argument("--floor", type=path, metavar="FOLDER", help="other real images, for its floor")
    report.add_argument(
        "--judged-images", type=whole(1, MAX_COUNT), default=512, metavar="N", help="images that are judged (512)"
    )
    add_threads_argument(parser)


def run(args: argparse.Namespace) -> int:
    from bitdance_edge.calibration.calibrate import calibrate
    from bitdance_edge.calibration.findings import summary
    from bitdance_edge.runtime import Bundle
    from bitdance_edge.runtime.bundle.files import claimed_output

    bundle = Bundle.open(args.bundle)
    options = _options(args, bundle)
    if args.target:
        _require_target(args.target, options.recipe, args.bundle)
    try:
        with claimed_output(args.out):
            findings = calibrate(bundle, args.out, options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was recorded is kept; run the same command to go on from there") from None
    print("\n".join(summary(findings)))
    say(f"\n{args.out / 'calibration' / 'report.md'} says more. Next:")
    say(f"  bitdance-edge generate {args.out} {example_subject(bundle)} --seed 1")
    missed = any(findings.tested(part) > result.budget for part, result in findings.searches.items())
    return BUDGET_MISSED if missed else 0


def _options(args: argparse.Namespace, bundle: "Bundle") -> "CalibrateOptions":
    from bitdance_edge.calibration.calibrate import CalibrateOptions
    from bitdance_edge.calibration.errors import CalibrationError
    from bitdance_edge.calibration.judge import JudgeOptions

    judge = None
    if args.features or args.references or args.floor:
        if not (args.features and args.references):
            raise CalibrationError("--features or --references alone judge nothing; give both")
        judge = JudgeOptions(features=args.features, references=args.references, floor=args.floor)
    return CalibrateOptions(
        recipe=_recipe(args, bundle),
        held_out=args.held_out,
        search_images=args.search_images,
        test_images=args.test_images,
        sensitivity=not args.no_sensitivity,
        judge=judge,
        judged_images=args.judged_images,
        data=args.data,
        threads=args.threads,
        force=args.force,
    )


def _recipe(args: argparse.Namespace, bundle: "Bundle") -> "CalibrationRecipe":
    from bitdance_edge.calibration.errors import CalibrationError
    from bitdance_edge.calibration.recipe import CalibrationRecipe, Draw

    given = {stage: getattr(args, stage) for stage in STAGES if getattr(args, stage)}
    budget = args.max_bit_flips
    if args.recipe:
        others = ("precision", "calibrator", "percentile", "smooth", "images", "seed", "classes", "prompts", "size")
        clash = [name for name in (*others, "steps", "guidance", "patches") if getattr(args, name) is not None]
        clash += [*given, *(["flat-times"] if args.flat_times else [])]
        if clash:
            raise CalibrationError(f"--recipe holds every choice; omit {', '.join(f'--{name}' for name in clash)}")
        recipe = CalibrationRecipe.read(args.recipe)
        return replace(recipe, max_bit_flips=budget)  # its kept layers are the result of a search already
    precisions = {}
    for stage in STAGES:
        precision = given.get(stage, args.precision)
        if stage not in bundle.stages or precision is None or precision == bundle.stages[stage].precision:
            continue
        if precision in ("fp32", "fp16", "bf16"):
            raise CalibrationError(
                f"--{stage} {precision}: this bundle's {stage} is {bundle.stages[stage].precision}; calibrate a bundle "
                f"made with: bitdance-edge export --dtype {precision}"
            )
        precisions[stage] = precision
    draw = Draw(
        images=8 if args.images is None else args.images,
        seed=args.seed or 0,
        classes=tuple(expand_classes(args.classes)) if args.classes and args.classes != "all" else (),
        prompts=_lines(args.prompts) if args.prompts else (),
        size=args.size,
        patches=args.patches,
        steps=args.steps,
        guidance=args.guidance,
    )
    return CalibrationRecipe(
        precisions=precisions,
        calibrator=args.calibrator or "mse",
        percentile=99.99 if args.percentile is None else args.percentile,
        smooth=args.smooth,
        weigh_times=not args.flat_times,
        draw=draw,
        max_bit_flips=budget,
    )


def _lines(file: Path) -> tuple[str, ...]:
    """Read the prompts of a file, one a line; empty lines are skipped."""
    from bitdance_edge.calibration.errors import CalibrationError
    from bitdance_edge.runtime.reading import read_text

    prompts = tuple(line.strip() for line in read_text(file, "file of prompts").splitlines() if line.strip())
    if not prompts:
        raise CalibrationError(f"the calibration set is empty: {file} holds no prompt; write one a line")
    return prompts


def _require_target(name: str, recipe: "CalibrationRecipe", bundle: str) -> None:
    """Refuse a precision that the target's GPUs do not have, before any work."""
    from bitdance_edge.engines.support import require_types
    from bitdance_edge.engines.targets import parse_engine_target

    target = parse_engine_target(name)
    types = frozenset(recipe.precisions.values())
    require_types(types, target.name, target.runs_on, all_of_them=bool(target.capabilities))
