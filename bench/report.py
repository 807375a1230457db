"""The report of a comparison: the lines on the terminal and the Markdown page."""

from collections.abc import Iterator, Mapping
from typing import Any

from bitdance_edge.bench.bits import ROUNDING
from bitdance_edge.bench.contenders import PEERS, TORCH

SHOWN_OPERATORS = 3


def markdown(report: Mapping[str, Any], plot: str) -> str:
    return "\n".join(_page(report, plot)) + "\n"


def _page(report: Mapping[str, Any], plot: str) -> Iterator[str]:
    yield f"# {report['title']}"
    yield from ("", "```", report["command"], "```", "")
    yield from _machine(report)
    yield ""
    yield _what(report)
    yield ""
    yield f"![Seconds by stage, and distance to the floor]({plot})"
    for entry in report["threads"]:
        yield from ("", f"## {_threads(entry['threads'])}", "", *summary(entry))
        for contender in entry["contenders"]:
            yield from _contender(contender)
    for name, stages in report["operators"].items():
        yield from ("", f"## Where the stages of {name} spend their time", "")
        yield "Operators as ONNX Runtime runs them, by share of the stage, traced in a short generation."
        yield ""
        for stage, shares in stages.items():
            first = [f"{op} {100 * share:.0f} %" for op, share in list(shares.items())[:SHOWN_OPERATORS]]
            yield f"- {stage}: {', '.join(first)}"
    yield from ("", "## How it was measured", "", *_method(report))


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _machine(report: Mapping[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    there = [name for name, has in machine["instructions"].items() if has]
    missing = [name for name, has in machine["instructions"].items() if not has]
    yield (
        f"{machine['name']}, {machine['processors']} processors, last cache "
        f"{machine['last_cache_bytes'] / 2**20:.0f} MiB; has {', '.join(there) or 'none of ' + ', '.join(missing)}"
        + (f", not {', '.join(missing)}" if there and missing else "")
        + ". "
        + ", ".join(f"{package} {version}" for package, version in report["versions"].items())
        + "."
    )


def _what(report: Mapping[str, Any]) -> str:
    work = report["work"]
    images = "One image" if work["images"] == 1 else f"{work['images']} images at once"
    patches = report["patches"]
    part = f"{patches['drawn']} of {patches['of']} patches" if patches["drawn"] < patches["of"] else "all patches"
    guidance = report["sampling"]["guidance"]
    return (
        f"{images}, {part} of {report['size']} pixels, {report['sampling']['steps']} sampling steps, guidance "
        f"{guidance:g}, seed {work['seed']}; the same weights and noise for all. Medians of {report['rounds']} "
        "alternating runs after a warm-up that does not count."
    )


def summary(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of whole images with one number of threads."""
    references = [c["name"] for c in entry["contenders"] if c["kind"] in TORCH]
    machine = entry["machine"]
    yield f"The machine: {machine['gflops']:.1f} GFLOP/s in float32, reads {machine['gbytes']:.1f} GB/s."
    if entry["shared"]:
        yield (
            f"**It was shared**: other processes kept {entry['others']:.1f} processors busy. Wall times are longer "
            "than on an idle machine"
            + ("; CPU seconds are not." if entry["threads"] == 1 else ", and so are CPU seconds: threads wait.")
        )
    yield ""
    ratios = "".join(f" CPU / {name} | wall / {name} |" for name in references)
    yield f"| | CPU s | wall s | wall, range |{ratios} bits that differ | pixels |"
    yield "|---|---:|---:|---|" + "---:|---:|" * len(references) + "---|---|"
    for contender in sorted(entry["contenders"], key=lambda contender: contender["cpu"]):
        walls = [run["wall"] for run in contender["rounds"]]
        against = contender["against"]
        cells = "".join(
            f" {against[name]['cpu']:.3f} | {against[name]['wall']:.3f} |" if name in against else " | |"
            for name in references
        )
        yield (
            f"| {contender['name']} | {_seconds(contender['cpu'])} | {_seconds(contender['wall'])} "
            f"| {_seconds(min(walls))} to {_seconds(max(walls))} |{cells} {_bits(contender['agreement'])} "
            f"| {_pixels(contender['agreement'])} |"
        )


def _seconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _bits(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "reference"
    parts = [_counts(found["free"])]
    if found["forced"] is not None:
        parts.append(f"{_counts(found['forced'])} under teacher forcing")
    if found["calibration"] is not None:
        parts.append(f"{100 * found['calibration']['forced']:.3g} % in its calibration report")
    return "; ".join(parts)


def _counts(bits: Mapping[str, Any]) -> str:
    rounding = f" ({bits['within_rounding']} within rounding)" if bits["within_rounding"] else ""
    return f"{bits['different']}{rounding} of {bits['compared']}"


def _pixels(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["psnr"] is None:
        return "identical"
    return f"{found['psnr']:.1f} dB, {found['levels']} of 255 levels at most"


def _contender(contender: Mapping[str, Any]) -> Iterator[str]:
    ours = contender["kind"] not in TORCH  # its stages are a bundle's graphs
    yield from ("", f"### {contender['name']}", "")
    yield "| stage | launches | ms each | s | share |" + (
        " GFLOP | floor, s | times the floor | set by |" if ours else ""
    )
    yield "|---|---:|---:|---:|---:|" + ("---:|---:|---:|---|" if ours else "")
    for name, stage in contender["stages"].items():
        row = (
            f"| {name} | {stage['launches']} | {stage['milliseconds_each']:.4g} | {_seconds(stage['seconds'])} "
            f"| {100 * stage['share']:.1f} % |"
        )
        yield row + (_floor(stage) if ours else "")
    overhead = contender["overhead"]
    yield (
        f"| between the stages | | | {_seconds(overhead['seconds'])} | {100 * overhead['share']:.1f} % |"
        + (" | | | |" if ours else "")
    )
    yield ""
    yield f"Products: {_products(contender['products'])}."
    yield ""
    yield _starting(contender)


def _products(by_stage: Mapping[str, str]) -> str:
    """How stages multiply, those that do it alike together."""
    alike: dict[str, list[str]] = {}
    for stage, how in by_stage.items():
        alike.setdefault(how, []).append(stage)
    return "; ".join(f"{', '.join(stages)}: {how}" for how, stages in alike.items())


def _floor(stage: Mapping[str, Any]) -> str:
    if "floor" not in stage:
        return " | | | |"
    far = f"{stage['to_floor']:.2f}" if stage["to_floor"] else ""
    precision = "" if stage["precision"] == "fp32" else f" ({stage['precision']}: the float32 rate is no bound)"
    return f" {stage['operations'] / 1e9:.3g} | {_seconds(stage['floor'])} | {far} | {stage['bound']}{precision} |"


def _starting(contender: Mapping[str, Any]) -> str:
    memory = contender["memory"]
    text = (
        f"Opening took {_seconds(contender['open_seconds'])} s; the first image "
        f"{_seconds(contender['warm_up']['wall'])} s, {_seconds(max(0.0, contender['first_image_extra']))} s more than "
        f"later ones. Peak memory {memory['peak_bytes'] / 1e6:.0f} MB, of which {memory['resting_bytes'] / 1e6:.0f} MB "
        "are the process with its libraries"
    )
    if "plan_bytes" not in memory:
        return text + "."
    return (
        f"{text}; the rest, {memory['taken_bytes'] / 1e6:.0f} MB, is {memory['taken_to_allowed']:.2f} of 1.3 times the "
        f"weights ({memory['weights_bytes'] / 1e6:.0f} MB) plus what the memory plan adds "
        f"({(memory['plan_bytes'] - memory['weights_bytes']) / 1e6:.0f} MB) and {memory['session_bytes'] / 1e6:.0f} MB "
        "for sessions."
    )


def _method(report: Mapping[str, Any]) -> Iterator[str]:
    yield "- Every contender is a process of its own, and they take turns. CPU seconds are user and system time of all"
    yield "  its threads. A ratio is the median over the rounds of the ratio of two adjacent runs."
    yield "- PyTorch's stages are timed inside its whole image. `cond_embed` runs once a patch in a bundle's backbone"
    yield "  and at every evaluation in PyTorch's head; compiled, the head is timed with its modulation."
    yield "- A stage's floor is the larger of its operations (counted from its graph) at the machine's float32 rate and"
    yield "  the bytes of its weights at the read bandwidth, both the best of several libraries, before and after the"
    yield "  runs. Weights that fit the last cache set no floor, nor does the float32 rate for another precision."
    yield f"- A bit that differs is within rounding where the reference predicts at most {ROUNDING:g} before the sign"
    yield "  is taken. The patches that follow one in the same image are sampled on top of it, and are not compared."
    yield "- Under teacher forcing every patch is sampled on top of the reference's patches."
    kinds = {c["kind"] for entry in report["threads"] for c in entry["contenders"]}
    if not PEERS.keys().isdisjoint(kinds):
        yield "- Other runtimes get the portable graphs of the first bundle, under this project's loop. A stage with an"
        yield "  operator that OpenVINO lacks (TensorScatter, of the backbone) is run by ONNX Runtime."
    if "torch-compile" in kinds:
        yield "- `torch.compile` compiles head and decoder; the backbone, whose cache grows every step, stays eager."
