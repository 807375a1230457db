"""``bitdance-edge evaluate``: scores of a bundle's images, of shards or of a folder, with error bars."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from bitdance_edge.commands.bulk import add_subjects, given_subjects, planned
from bitdance_edge.commands.common import add_threads_argument, say
from bitdance_edge.commands.outputs import claimed_outputs, require_file, require_folder
from bitdance_edge.commands.values import flags, path, shown, whole
from bitdance_edge.runtime import written_whole

if TYPE_CHECKING:
    from bitdance_edge.scale.report import Report
    from bitdance_edge.scale.sources import Job, Source

WORK = Path("evaluation")
MOST_RESAMPLES = 10_000
EXAMPLE = """examples:
  bitdance-edge evaluate bundles/digits-4x --count 100 --features judge.onnx --reference judge/references
  bitdance-edge evaluate bundles/digits-4x --against bundles/digits-4x-int8 --count 100 --features judge.onnx
  bitdance-edge evaluate imagenet --features inception.onnx --reference VIRTUAL_imagenet256_labeled.npz
  bitdance-edge evaluate imagenet --npz imagenet.npz
  bitdance-edge evaluate captions --layout geneval --prompts evaluation_metadata.jsonl --out geneval
A bundle's images and what the network reads are kept in --work, so that the same command goes on.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Score images by a network of yours (--features): Fréchet distance to a reference, precision and recall, "
        "inception score, class agreement; compare two bundles on the same seeds; or write images as others' scorers "
        "read them. Errors are standard errors."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("source", type=path, help="a bundle, the --out of bulk, a folder of images, or an .npz of them")
    score = parser.add_argument_group("scores")
    score.add_argument("--features", type=path, metavar="ONNX", help="network that reads the images (docs/evaluate.md)")
    score.add_argument(
        "--reference", type=path, metavar="PATH", help="real images: a folder, an .npz, or saved statistics"
    )
    score.add_argument(
        "--against",
        type=path,
        metavar="PATH",
        help="a second bundle or --out of bulk, of the same seeds: also bits, PSNR",
    )
    score.add_argument(
        "--resamples",
        type=whole(0, MOST_RESAMPLES),
        default=100,
        metavar="N",
        help="draws for error bars (100; 0: none)",
    )
    score.add_argument("--report", type=path, metavar="FILE", help=".json file of all figures")
    score.add_argument("--save-statistics", type=path, metavar="FILE", help=".npz for a later --reference")
    score.add_argument("--work", type=path, default=WORK, metavar="DIR", help="what is kept (default: evaluation)")
    write = parser.add_argument_group("for others' scorers")
    write.add_argument("--npz", type=path, metavar="FILE", help="all images in one file, as ADM's suite reads them")
    write.add_argument("--layout", metavar="NAME", help="geneval or dpg: write images and prompts as it reads them")
    write.add_argument("--out", type=path, metavar="DIR", help="with --layout: where")
    add_subjects(parser)
    parser.add_argument("--device", action="append", help="of a bundle: as for bulk")
    add_threads_argument(parser)


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.scale.errors import ScaleError

    if not (args.features or args.against or args.npz or args.layout):
        raise ScaleError("nothing to do: give --features ONNX for scores, --against, --npz or --layout")
    _require_outputs(args)
    with claimed_outputs(args.out, args.report, args.save_statistics, args.npz):
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    source = _source(args, args.source)
    if args.layout:
        _write_layout(args, source)
    if args.npz:
        _write_npz(source, args.npz)
    if args.features or args.against:
        report = _report(args, source)
        print("\n".join(report.lines()))
        if args.report:
            with written_whole(args.report) as file:
                file.write((json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
            say(str(args.report))


def _report(args: argparse.Namespace, source: "Source") -> "Report":
    from bitdance_edge.evaluation.extractor import Extractor
    from bitdance_edge.scale.features import read_features
    from bitdance_edge.scale.pairs import compare
    from bitdance_edge.scale.reference import open_reference, save_statistics
    from bitdance_edge.scale.report import Report, about
    from bitdance_edge.scale.scores import difference, scores

    other = _source(args, args.against) if args.against else None
    pairs = compare(_job(source), _job(other)).figures(args.resamples) if other is not None else {}
    named = {source.name: source}
    if other is not None:
        named[other.name if other.name != source.name else f"{other.name} (2)"] = other
    if args.features is None:
        return Report(images=source.images, sets={name: {} for name in named}, pairs=pairs)
    extractor, kept = Extractor(args.features, args.threads), args.work / "features"
    found = [read_features(each, extractor, kept) for each in named.values()]
    if args.save_statistics:
        save_statistics(args.save_statistics, found[0], extractor)
        say(str(args.save_statistics))
    reference = None
    if args.reference:
        reference = open_reference(args.reference, extractor, source.size, kept)
        say(f"{extractor.distance_name} to {reference.name}")
    return Report(
        images=source.images,
        sets={
            name: scores(each, reference, extractor, args.resamples) for name, each in zip(named, found, strict=True)
        },
        about=about(extractor, None if reference is None else reference.name),
        difference=difference(found[0], found[1], reference, extractor, args.resamples) if other is not None else {},
        pairs=pairs,
    )


def _source(args: argparse.Namespace, where: Path) -> "Source":
    """The images at a path; those of a bundle are made first, where they are not there yet."""
    from bitdance_edge.runtime import Bundle
    from bitdance_edge.runtime.bundle.specs import MANIFEST
    from bitdance_edge.scale.bulk import run_job
    from bitdance_edge.scale.errors import ScaleError
    from bitdance_edge.scale.local import LocalEngine
    from bitdance_edge.scale.sources import Job, open_source

    is_bundle = (where / MANIFEST).is_file() or (where.is_file() and where.suffix == ".tar")
    if not is_bundle:
        if given := given_subjects(args):
            raise ScaleError(f"{where} has its images already: omit {given}")
        return open_source(where, args.size)
    if args.classes is None and args.prompts is None and Bundle.open(where).text is None:
        args.classes = "all"
    plan = planned(args, str(where), file_format="npz")
    folder = args.work / f"{Bundle.open(where).name}-{plan.job[:12]}"
    engine = LocalEngine(folder=folder, devices=tuple(args.device or ["auto"]), threads=args.threads)
    run_job(plan, folder, range(plan.shards), engine, say)
    return Job(folder, plan, where.name)


def _job(source: "Source") -> "Job":
    from bitdance_edge.scale.errors import ScaleError
    from bitdance_edge.scale.sources import Job

    if not isinstance(source, Job):
        raise ScaleError(f"{source.name} has no seeds to compare by: --against is for bundles and the --out of bulk")
    return source


def _write_layout(args: argparse.Namespace, source: "Source") -> None:
    from bitdance_edge.scale.errors import ScaleError
    from bitdance_edge.scale.layouts import write_layout
    from bitdance_edge.scale.prompts import read_prompts
    from bitdance_edge.scale.sources import Job

    if args.prompts is None or args.out is None or not isinstance(source, Job):
        raise ScaleError(
            "--layout needs images of bulk or of a bundle, --prompts that they were made of, and --out DIR"
        )
    written = write_layout(source, read_prompts(args.prompts), args.layout, args.out)
    say(f"{source.images:,} images of {written:,} prompts")
    print(args.out)


def _write_npz(source: "Source", file: Path) -> None:
    from bitdance_edge.scale.stacking import write_stack

    write_stack(source, file)
    print(file)


def _require_outputs(args: argparse.Namespace) -> None:
    """Check what can be written, and that every option has an effect, before the work starts."""
    from bitdance_edge.scale.errors import ScaleError
    from bitdance_edge.scale.layouts import LAYOUTS

    if args.layout not in (None, *LAYOUTS):
        raise ScaleError(f"--layout is {shown(args.layout)}; it must be one of {', '.join(LAYOUTS)}")
    for name in ("reference", "save_statistics"):
        if getattr(args, name) and not args.features:
            raise ScaleError(f"{flags([name])} is for scores: give --features ONNX too")
    if args.report and not (args.features or args.against):
        raise ScaleError("--report is for figures: give --features ONNX or --against too")
    if args.out and not args.layout:
        raise ScaleError("--out is for --layout geneval or dpg; images of a bundle go to --work")
    require_file("--report", args.report, ".json")
    require_file("--save-statistics", args.save_statistics, ".npz")
    require_file("--npz", args.npz, ".npz")
    require_folder("--out", args.out)
    require_folder("--work", args.work)
