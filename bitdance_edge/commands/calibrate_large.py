"""``calibrate`` for bundles larger than the memory: ``--weights-only`` and ``--by-layer``."""

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bitdance_edge.commands.common import say
from bitdance_edge.commands.values import flags
from bitdance_edge.runtime.bundle.manifest import sha256
from bitdance_edge.runtime.values import quoted

if TYPE_CHECKING:
    from bitdance_edge.calibration.recipe import CalibrationRecipe
    from bitdance_edge.runtime import Bundle

HELD_OUT = 8  # images, where --held-out is omitted
# Options that say what is run, or what is chosen by it.
NEEDS_RUNS = (
    *("by_layer", "max_bit_flips", "calibrator", "percentile", "smooth", "flat_times", "images", "seed", "classes"),
    *("prompts", "bits", "size", "steps", "guidance", "patches", "data", "no_sensitivity", "no_feedback"),
    *("features", "references", "floor"),
)
# Options of what is run with a whole stage in memory.
NEEDS_WHOLE = (
    *("max_bit_flips", "smooth", "flat_times", "images", "patches", "data", "no_sensitivity", "recipe"),
    *("features", "references", "floor"),
)


def require_options(args: argparse.Namespace) -> None:
    """Refuse options that the two ways do not take.

    Raises:
        CalibrationError: names them.
    """
    from bitdance_edge.calibration.errors import CalibrationError

    others = NEEDS_RUNS if args.weights_only else NEEDS_WHOLE
    given = flags(name for name in others if getattr(args, name) not in (None, False))
    if given and args.weights_only:
        raise CalibrationError(f"--weights-only runs nothing, so {given} would change nothing; omit it")
    if given:
        raise CalibrationError(f"--by-layer does not take {given}, which needs whole stages in memory; omit it")
    if args.by_layer and args.bits is None:
        raise CalibrationError(
            "--by-layer needs the bits of images: --bits FILE.npy, made by: bitdance-edge tokenize BUNDLE IMAGES"
        )


def recipe_of(args: argparse.Namespace, recipe: "CalibrationRecipe", stages: Sequence[str]) -> "CalibrationRecipe":
    """The recipe without stages of whole images that nobody named.

    Raises:
        CalibrationError: it is of a calibration of another kind.
    """
    from bitdance_edge.calibration.errors import CalibrationError
    from bitdance_edge.calibration.weights_only import of_the_loop

    if args.recipe and not recipe.weights_only:
        raise CalibrationError(f"{args.recipe} is of a calibration with activations; use it without --weights-only")
    return of_the_loop(recipe, recipe.precisions if args.recipe else {each for each in stages if getattr(args, each)})


def run_weights_only(args: argparse.Namespace, bundle: "Bundle", recipe: "CalibrationRecipe") -> int:
    from bitdance_edge.calibration.weights_only import WeightsOptions, calibrate_weights

    try:
        findings = calibrate_weights(bundle, args.out, WeightsOptions(recipe, threads=args.threads, force=args.force))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the weights written so far are kept; run the same command to go on") from None
    _say_result(args, findings.summary())
    return 0


def run_by_layer(args: argparse.Namespace, bundle: "Bundle", recipe: "CalibrationRecipe") -> int:
    from bitdance_edge.calibration.by_layer import LayerOptions, calibrate_by_layer
    from bitdance_edge.calibration.errors import CalibrationError
    from bitdance_edge.calibration.teacher import taught_images
    from bitdance_edge.runtime.request import Request
    from bitdance_edge.runtime.tokens import read_tokens

    tokens = read_tokens(args.bits)
    subjects = recipe.draw.prompts or recipe.draw.classes
    if not subjects:
        raise CalibrationError("--by-layer needs to know what the images show: give --prompts FILE or --classes")
    request = Request(size=args.size, steps=args.steps, guidance=args.guidance, seed=recipe.draw.seed, output="tokens")
    images = taught_images(bundle, tokens, subjects, request, recipe.draw.seed)
    options = LayerOptions(
        recipe=recipe,
        images=images,
        held_out=min(HELD_OUT, len(images) // 4) if args.held_out == HELD_OUT else args.held_out,
        taught_by=sha256(args.bits),
        threads=args.threads,
        force=args.force,
    )
    try:
        findings = calibrate_by_layer(bundle, args.out, options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the layers done so far are kept; run the same command to go on") from None
    _say_result(args, findings.summary())
    return 0


def _say_result(args: argparse.Namespace, lines: Iterable[str]) -> None:
    print("\n".join(lines))
    say(f"\n{args.out / 'calibration' / 'report.md'} says more. Next:")
    say(f"  bitdance-edge inspect {quoted(args.out)} --memory 24GB")
