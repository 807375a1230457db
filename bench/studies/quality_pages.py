"""Copies calibration reports of bundles into docs/quality and writes the table of its README from them.

    python bench/studies/quality_pages.py bundles/digits-1x-int8 bundles/digits-1x-fp8 ...

The table is between two marks in ``docs/quality/README.md``; its rows are all reports in docs/quality, sorted by name.
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "quality"
FILES = ("report.md", "report.json", "recipe.json", "*.png")
MARKS = ("<!-- table -->", "<!-- end of table -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    args = parser.parse_args()
    for bundle in args.bundles:
        target = DOCS / bundle.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for pattern in FILES:
            for file in (bundle / "calibration").glob(pattern):
                shutil.copyfile(file, target / file.name)
    page = (DOCS / "README.md").read_text(encoding="utf-8")
    table = "\n".join((MARKS[0], *rows(), MARKS[1]))
    written = re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: table, page, flags=re.DOTALL)
    (DOCS / "README.md").write_text(written, encoding="utf-8")


def rows() -> Iterator[str]:
    columns = (
        "bits forced",
        "bits free",
        "PSNR",
        "SSIM",
        "class agreement (before)",
        "Fréchet (before)",
        "kept",
        "size",
    )
    yield f"| | {' | '.join(columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for path in sorted(DOCS.glob("*/report.json"), key=lambda path: path.parent.name):
        yield row(path.parent.name, json.loads(path.read_text(encoding="utf-8")))


def row(name: str, report: dict) -> str:
    bits, images, judge = report["bits"], report["images"], report["judge"]
    sizes = report["sizes"].values()
    share = sum(size["bytes"] for size in sizes) / sum(size["bytes_before"] for size in sizes)
    agreement = frechet = ""
    if judge:
        before, after = judge["reference"], judge["calibrated"]
        frechet = f"{after['frechet']:.2f} ({before['frechet']:.2f})"
        if "class_agreement" in after:
            agreement = f"{100 * after['class_agreement']:.2f} % ({100 * before['class_agreement']:.2f} %)"
    psnr = "identical" if images["psnr"] is None else f"{images['psnr']:.1f} dB"
    return (
        f"| [{name}]({name}/report.md) | {100 * bits['forced']:.2f} % | {100 * bits['free']:.2f} % | {psnr} "
        f"| {images['ssim']:.3f} | {agreement} | {frechet} | {len(report['left_as_exported'])} | {100 * share:.0f} % |"
    )


if __name__ == "__main__":
    main()
