"""The alternating runs: each contender is opened, warmed up and checked, then all take turns."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from bitdance_edge.bench.agreement import Agreement, agreement, require_same
from bitdance_edge.bench.bits import BitCounts
from bitdance_edge.bench.child import Child
from bitdance_edge.bench.contenders import OURS, TORCH, Contender
from bitdance_edge.bench.errors import BenchError
from bitdance_edge.bench.measured import busy_seconds
from bitdance_edge.bench.run_folder import RunFolder, once, read_json, write_json
from bitdance_edge.bench.work import Work
from bitdance_edge.runtime.bundle.manifest import Bundle

PACKAGES = ("bitdance-edge", "onnxruntime", "numpy", "torch")
OPTIONAL = ("openvino",)


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """``max_bit_flips``: share of bits that may be wrong (see ``require_same``)."""

    bundles: Sequence[Bundle]
    contenders: Sequence[Contender]
    checkpoint: Path
    work: Work
    rounds: int
    threads: Sequence[int]
    folder: Path
    max_bit_flips: float | None
    force: bool


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What one contender did with one number of threads: opening, warm-up, then the rounds that count."""

    contender: Contender
    opening: dict[str, Any]
    warm_up: dict[str, Any]
    rounds: list[dict[str, Any]]
    agreement: Agreement | None  # None: it is the reference
    launches: list[dict[str, Any]]  # of a bundle's stages, by size


@dataclass(frozen=True, kw_only=True)
class ThreadRuns:
    threads: int
    before: dict[str, Any]  # the machine's abilities
    after: dict[str, Any]
    turns: list[Turns]


class Runs:
    """All runs of a comparison, those that are kept in its folder and those that are made now.

    Raises:
        BenchError: the folder holds something else.
    """

    def __init__(self, options: BenchOptions, processor: str) -> None:
        self.options = options
        ours = [contender for contender in options.contenders if contender.kind == OURS]
        self.bundles = {c.name: bundle for c, bundle in zip(ours, options.bundles, strict=True)}
        peers = [contender for contender in options.contenders if contender.kind not in (OURS, *TORCH)]
        self.graphs = self.bundles | {contender.name: options.bundles[0] for contender in peers}
        self.reference = next(contender for contender in options.contenders if contender.kind in TORCH)
        identity = {
            "bundles": [bundle.digest for bundle in options.bundles],
            "contenders": [[c.name, c.kind] for c in options.contenders],
            "checkpoint": _fingerprint(options.checkpoint),
            "work": options.work.to_json(),
            "processor": processor,
            "versions": versions(),
        }
        self.kept = RunFolder(options.folder, identity, options.force)

    def __call__(self) -> list[ThreadRuns]:
        options = self.options
        each = len(options.contenders) * (options.rounds + 1) + len(self.graphs) + 2
        with tqdm(total=each * len(options.threads), unit="run", leave=False, disable=None) as progress:
            return [self._with_threads(threads, progress) for threads in options.threads]

    def _with_threads(self, threads: int, progress: "tqdm[Any]") -> ThreadRuns:
        options = self.options
        with ExitStack() as stack:
            machine = stack.enter_context(Child("the machine", threads))
            before = self._abilities("before", machine, threads, progress)
            children = {}
            for contender in options.contenders:
                if not self.kept.complete(contender, threads, options.rounds):
                    children[contender.name] = child = stack.enter_context(Child(contender.name, threads))
                    self._open(child, contender, threads, progress)
                else:
                    progress.update()
            found = {c.name: self._agreement(c, threads, progress) for c in options.contenders}
            for number in range(options.rounds):
                for contender in options.contenders:
                    path = self.kept.round(contender, threads, number)
                    progress.set_description(f"{threads} threads, round {number + 1}, {contender.name}")
                    if not path.is_file():
                        write_json(path, timed_image(children[contender.name]))
                    progress.update()
            if children:
                self.kept.of_threads(threads, "after.json").unlink(missing_ok=True)
            after = self._abilities("after", machine, threads, progress)
        turns = [self._turns(c, threads, found[c.name]) for c in options.contenders]
        return ThreadRuns(threads=threads, before=before, after=after, turns=turns)

    def _abilities(self, when: str, machine: Child, threads: int, progress: "tqdm[Any]") -> dict[str, Any]:
        progress.set_description(f"{threads} threads, the machine")
        path = self.kept.of_threads(threads, f"{when}.json")
        found = once(path, lambda: machine.ask("abilities", threads=threads))
        progress.update()
        return found

    def _open(self, child: Child, contender: Contender, threads: int, progress: "tqdm[Any]") -> None:
        """Load a contender and have it make its first image, which is kept and does not count."""
        progress.set_description(f"{threads} threads, warm-up, {contender.name}")
        folder = str(self.options.bundles[0].folder)
        work = self.options.work.to_json()
        opening = child.ask(
            "open", kind=contender.kind, source=contender.source, bundle=folder, threads=threads, work=work
        )
        warm_up = child.ask("image", save=str(self.kept.of(contender, threads, "image.npz")))
        write_json(self.kept.of(contender, threads, "open.json"), opening)
        write_json(self.kept.of(contender, threads, "warm-up.json"), warm_up)
        progress.update()

    def _agreement(
        self, contender: Contender, threads: int, progress: "tqdm[Any]"
    ) -> tuple[Agreement | None, list[dict[str, Any]]]:
        """Compare a contender's image with the reference's, and count what its graphs are launched.

        Raises:
            BenchError: too many bits of a bundle on this project's runtime are wrong; a peer's are only shown.
        """
        if contender == self.reference:
            return None, []
        bundle, forced = self.graphs.get(contender.name), None
        reference = self.kept.of(self.reference, threads, "image.npz")
        if bundle is not None:
            progress.set_description(f"{threads} threads, bits of {contender.name}")
            forced = self._teacher_forcing(contender, threads, reference)
            progress.update()
        found = agreement(
            reference,
            self.kept.of(contender, threads, "image.npz"),
            self.options.bundles[0].model.tokens_per_step,
            BitCounts.from_json(forced["bits"]) if forced else None,
            self.bundles.get(contender.name),
        )
        if bundle is not None and contender.kind == OURS:
            require_same(bundle, found, self.options.max_bit_flips)
        return found, forced["launches"] if forced else []

    def _teacher_forcing(self, contender: Contender, threads: int, reference: Path) -> dict[str, Any]:
        asked = {"kind": contender.kind, "source": contender.source, "threads": threads}
        request = {**asked, "work": self.options.work.to_json()}

        def ask() -> dict[str, Any]:
            with Child(contender.name, threads) as child:
                return child.ask("teacher_forcing", **request, reference=str(reference))

        return once(self.kept.of(contender, threads, "teacher-forcing.json"), ask)

    def _turns(self, contender: Contender, threads: int, found: tuple[Agreement | None, list[dict[str, Any]]]) -> Turns:
        kept = self.kept
        opening, warm_up = (read_json(kept.of(contender, threads, name)) for name in ("open.json", "warm-up.json"))
        rounds = [read_json(kept.round(contender, threads, number)) for number in range(self.options.rounds)]
        if len({run["tokens_sha256"] for run in (warm_up, *rounds)}) > 1:
            raise BenchError(
                f"{contender.name} drew different tokens in two runs from the same noise with {threads} threads: "
                "no speed is shown"
            )
        return Turns(
            contender=contender,
            opening=opening,
            warm_up=warm_up,
            rounds=rounds,
            agreement=found[0],
            launches=found[1],
        )


def timed_image(child: Child) -> dict[str, Any]:
    """Make one image, and measure how many processors other processes kept busy meanwhile."""
    busy, started = busy_seconds(), perf_counter()
    answer = child.ask("image", save=None)
    spent = perf_counter() - started
    return {**answer, "others": max(0.0, (busy_seconds() - busy - answer["cpu"]) / spent)}


def versions() -> dict[str, str]:
    """Versions of the libraries that are compared, of those that are installed."""
    present = [package for package in OPTIONAL if find_spec(package) is not None]
    return {package: version(package) for package in (*PACKAGES, *present)}


def _fingerprint(checkpoint: Path) -> list[list[Any]]:
    """Name, size and time of change of each of its files."""
    files = sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else [checkpoint]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
