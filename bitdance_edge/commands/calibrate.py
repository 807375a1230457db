"""``bitdance-edge calibrate``: a bundle in INT8, FP8 or with 4-bit weights, and a report of what it lost."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitdance_edge.commands import calibrate_large as large
from bitdance_edge.commands.common import (
    add_size_argument,
    add_threads_argument,
    example_subject,
    expand_classes,
    images_in,
    say,
)
from bitdance_edge.commands.values import flags, number, path, percentage, text, whole
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.request import MAX_COUNT, MAX_GUIDANCE, MAX_STEPS
from bitdance_edge.runtime.values import quoted

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
OF_GENERATORS = (  # options that a tokenizer alone has no use for
    *("max_bit_flips", "flat_times", "seed", "classes", "prompts", "steps", "guidance", "patches", "data"),
    *("no_sensitivity", "features", "references", "floor", "recipe", "weights_only", "by_layer", "bits"),
)
BUDGET_MISSED = 3  # exit status: the bundle is written, but more bits flip than --max-bit-flips allows
IMAGES, IMAGES_4_BITS = 8, 32  # recorded by default; error feedback takes more
EXAMPLE = """examples:
  bitdance-edge calibrate bundles/digits-4x --precision int8 -o bundles/digits-4x-int8
  bitdance-edge calibrate bundles/B-4x --precision int8 --max-bit-flips 0.5% -o bundles/B-4x-int8
  bitdance-edge calibrate bundles/B-4x --head fp8 --backbone int4 -o bundles/B-4x-mixed --target rtx:8.9
  bitdance-edge calibrate bundles/14B-64x --weights-only --precision int4 -o bundles/14B-64x-int4
  bitdance-edge calibrate bundles/d16c32 --encoder int8 --pictures photos -o bundles/d16c32-int8
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
    _add_choices(parser)
    _add_images(parser)
    _add_report(parser)
    add_threads_argument(parser)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what")
    what.add_argument("--precision", metavar="P", help="of all stages: int8, fp8, or 4-bit weights: int4 or nvfp4")
    for stage in STAGES:
        what.add_argument(f"--{stage}", metavar="P", help=f"of the {stage}; the bundle's own type keeps it as exported")
    what.add_argument(
        "--recipe", type=path, metavar="FILE", help="all choices, from an earlier calibration (recipe.json)"
    )
    what.add_argument(
        "--max-bit-flips", type=percentage, metavar="PERCENT", help="keep sensitive layers as exported until this holds"
    )
    what.add_argument("--target", help="GPUs it is meant for (rtx, rtx:8.9, ...); what they cannot run is refused")
    what.add_argument(
        "--weights-only",
        action="store_true",
        help="round matrices as they are read, and run nothing: for bundles larger than the memory, of any type",
    )
    what.add_argument(
        "--by-layer",
        action="store_true",
        help="hold one layer in memory at a time, over the images of --bits: for bundles larger than the memory",
    )
    how = parser.add_argument_group("how scales are chosen")
    how.add_argument("--calibrator", help="max, percentile, entropy or mse (default mse)")
    how.add_argument(
        "--percentile", type=number(50, 100), metavar="Q", help="of the percentile calibrator (default 99.99)"
    )
    how.add_argument(
        "--smooth", type=number(0, 1), metavar="A", help="SmoothQuant of this strength, 0 to 1 (default: none)"
    )
    how.add_argument("--flat-times", action="store_true", help="weigh all sampling times the same")
    how.add_argument("--no-feedback", action="store_true", help="round 4-bit weights to the nearest, without GPTQ")


def _add_images(parser: argparse.ArgumentParser) -> None:
    draw = parser.add_argument_group("which images")
    draw.add_argument("--images", type=whole(1, MAX_COUNT), help="images recorded (default 8, for 4 bits 32)")
    draw.add_argument(
        "--seed", type=whole(0), help="of the recorded images; the held-out ones follow from it (default 0)"
    )
    draw.add_argument("--classes", type=text, help="ids or names: 3,7 or 0-9 (default: all, in a seeded order)")
    draw.add_argument("--bits", type=path, metavar="NPY", help="with --by-layer: of images, as tokenize writes them")
    draw.add_argument("--prompts", type=path, metavar="FILE", help="of a text-to-image bundle: one prompt a line")
    draw.add_argument("--pictures", type=path, metavar="FOLDER", help="of a tokenizer alone: what it is recorded on")
    add_size_argument(parser)
    draw.add_argument("--steps", type=whole(1, MAX_STEPS), help="sampling steps of each patch (default: the bundle's)")
    draw.add_argument("--guidance", type=number(1, MAX_GUIDANCE), help="(default: the bundle's)")
    draw.add_argument("--patches", type=whole(1), help="only the first patches of each image, for large models")
    draw.add_argument("--data", type=path, metavar="FOLDER", help="recordings (default: calibration/ in the bundle)")


def _add_report(parser: argparse.ArgumentParser) -> None:
    report = parser.add_argument_group("report")
    report.add_argument(
        "--held-out",
        type=whole(1, MAX_COUNT),
        default=large.HELD_OUT,
        metavar="N",
        help="images for stages and layers (8)",
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


def run(args: argparse.Namespace) -> int:
    from bitdance_edge.calibration.calibrate import calibrate
    from bitdance_edge.calibration.errors import CalibrationError
    from bitdance_edge.calibration.findings import summary
    from bitdance_edge.runtime import Bundle
    from bitdance_edge.runtime.bundle.files import claimed_output

    bundle = Bundle.open(args.bundle)
    if not bundle.model.generates:
        return _run_tokenizer(args, bundle)
    if args.pictures:
        raise CalibrationError("--pictures are for a tokenizer alone; a generator makes images of its own: omit it")
    if args.by_layer or args.weights_only:
        large.require_options(args)
        recipe = large.recipe_of(args, _recipe(args, bundle), STAGES)
        if args.target:
            _require_target(args.target, recipe)
        return (
            large.run_by_layer(args, bundle, recipe) if args.by_layer else large.run_weights_only(args, bundle, recipe)
        )
    if args.bits is not None:
        raise CalibrationError("--bits are for --by-layer; a bundle that fits into memory makes images of its own")
    options = _options(args, bundle)
    if options.recipe.weights_only:
        raise CalibrationError(f"{args.recipe} is of weights alone; use it with --weights-only")
    if args.target:
        _require_target(args.target, options.recipe)
    try:
        with claimed_output(args.out):
            findings = calibrate(bundle, args.out, options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was recorded is kept; run the same command to go on from there") from None
    print("\n".join(summary(findings)))
    say(f"\n{args.out / 'calibration' / 'report.md'} says more. Next:")
    say(f"  bitdance-edge generate {quoted(args.out)} {example_subject(bundle)} --seed 1")
    missed = any(findings.tested(part) > result.budget for part, result in findings.searches.items())
    return BUDGET_MISSED if missed else 0


def _run_tokenizer(args: argparse.Namespace, bundle: "Bundle") -> int:
    from bitdance_edge.calibration.errors import CalibrationError
    from bitdance_edge.calibration.tokenizer import calibrate_tokenizer

    if given := flags(name for name in OF_GENERATORS if getattr(args, name) not in (None, False)):
        raise CalibrationError(f"{given} is about generations, and {args.bundle} is a tokenizer alone; omit it")
    if args.pictures is None:
        raise CalibrationError(f"{args.bundle} is a tokenizer alone, calibrated on pictures: give --pictures FOLDER")
    recipe = _recipe(args, bundle)
    if args.target:
        _require_target(args.target, recipe)
    losses = calibrate_tokenizer(
        bundle,
        args.out,
        recipe,
        images_in(args.pictures),
        held_out=args.held_out,
        threads=args.threads,
        force=args.force,
    )
    print("\n".join(losses.summary()))
    say(f"\n{args.out / 'calibration' / 'report.md'} says more. Next:")
    say(f"  bitdance-edge reconstruct {quoted(args.out)} {quoted(args.pictures)} --report report.json")
    return 0


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
    if absent := [stage for stage in given if stage not in bundle.stages]:
        has = ", ".join(stage for stage in STAGES if stage in bundle.stages)
        raise CalibrationError(f"--{absent[0]}: {bundle.name} has no such stage; it has {has}: omit it")
    budget = args.max_bit_flips
    if args.recipe:
        others = ("precision", "calibrator", "percentile", "smooth", "images", "seed", "classes", "prompts", "size")
        clash = [name for name in (*others, "steps", "guidance", "patches") if getattr(args, name) is not None]
        clash += [*given, *(name for name in ("flat-times", "no-feedback") if getattr(args, name.replace("-", "_")))]
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
    needs_more = not args.no_feedback and not {"int4", "nvfp4"}.isdisjoint(precisions.values())
    draw = Draw(
        images=args.images or (IMAGES_4_BITS if needs_more else IMAGES),
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
        feedback=not (args.no_feedback or args.weights_only),
        weights_only=args.weights_only,
    )


def _lines(file: Path) -> tuple[str, ...]:
    """Read the prompts of a file, one a line; empty lines are skipped."""
    from bitdance_edge.calibration.errors import CalibrationError
    from bitdance_edge.runtime.reading import read_text

    prompts = tuple(line.strip() for line in read_text(file, "file of prompts").splitlines() if line.strip())
    if not prompts:
        raise CalibrationError(f"the calibration set is empty: {file} holds no prompt; write one a line")
    return prompts


def _require_target(name: str, recipe: "CalibrationRecipe") -> None:
    """Refuse a precision that the target's GPUs do not have, before any work."""
    from bitdance_edge.engines.support import require_types
    from bitdance_edge.engines.targets import parse_engine_target

    target = parse_engine_target(name)
    types = frozenset("fp4" if each == "nvfp4" else each for each in recipe.precisions.values())
    require_types(types, target.name, target.runs_on, all_of_them=bool(target.capabilities))
