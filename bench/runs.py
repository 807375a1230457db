"""The alternating runs, each kept in the folder as soon as it is done, so that an interrupted measurement goes on."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm import tqdm

from bitdance_edge.bench.agreement import Agreement, agreement, require_same
from bitdance_edge.bench.child import Child
from bitdance_edge.bench.contenders import OURS, Contender
from bitdance_edge.bench.errors import BenchError
from bitdance_edge.bench.measured import busy_seconds
from bitdance_edge.bench.work import Work
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle

PACKAGES = ("bitdance-edge", "onnxruntime", "numpy", "torch")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """``max_bit_flips``: share of bits that may differ (see ``require_same``)."""

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
    """One folder of runs.

    Raises:
        BenchError: the folder holds something else.
    """

    def __init__(self, options: BenchOptions, processor: str) -> None:
        self.options, self.kept = options, options.folder / "runs"
        self.bundles = dict(zip([c.name for c in self._ours()], options.bundles, strict=True))
        self.reference = next(c for c in options.contenders if c.kind != OURS)
        self._claim(processor)

    def __call__(self) -> list[ThreadRuns]:
        options = self.options
        each = len(options.contenders) * (options.rounds + 1) + len(self.bundles) + 2
        with tqdm(total=each * len(options.threads), unit="run", leave=False, disable=None) as progress:
            return [self._with_threads(threads, progress) for threads in options.threads]

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is kept under a name, made where it is not there."""
        place = self.kept / f"{name}.json"
        if not place.is_file():
            _write(place, make())
        return json.loads(place.read_text())

    def _ours(self) -> Iterator[Contender]:
        return (c for c in self.options.contenders if c.kind == OURS)

    def _claim(self, processor: str) -> None:
        """Take a folder that is new or holds runs of the same comparison; more rounds or threads may be added."""
        options, folder = self.options, self.options.folder
        identity = {
            "bundles": [bundle.digest for bundle in options.bundles],
            "contenders": [[c.name, c.kind] for c in options.contenders],
            "checkpoint": _fingerprint(options.checkpoint),
            "work": options.work.to_json(),
            "processor": processor,
            "versions": versions(),
        }
        known = folder / "comparison.json"
        if options.force and known.is_file():
            shutil.rmtree(self.kept, ignore_errors=True)
            known.unlink()
        if known.is_file():
            found = json.loads(known.read_text())
            if changed := [name for name, value in identity.items() if found.get(name) != value]:
                raise BenchError(
                    f"{folder} holds runs with other {', '.join(changed)}; write to another folder with -o, or start "
                    "anew with --force"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise BenchError(f"{folder} is not empty and holds no comparison; write to another folder with -o")
        _write(known, identity)

    def _with_threads(self, threads: int, progress: "tqdm[Any]") -> ThreadRuns:
        options = self.options
        with ExitStack() as stack:
            machine = stack.enter_context(Child("the machine", threads))
            before = self._abilities(f"t{threads}-before", machine, threads, progress)
            children = {}
            for contender in options.contenders:
                if not self._complete(contender, threads):
                    children[contender.name] = child = stack.enter_context(Child(contender.name, threads))
                    self._open(child, contender, threads, progress)
                else:
                    progress.update()
            found = {c.name: self._agreement(c, threads, progress) for c in options.contenders}
            for number in range(options.rounds):
                for contender in options.contenders:
                    place = self._round(contender, threads, number)
                    progress.set_description(f"{threads} threads, round {number + 1}, {contender.name}")
                    if not place.is_file():
                        _write(place, _beside_others(children[contender.name]))
                    progress.update()
            if children:
                (self.kept / f"t{threads}-after.json").unlink(missing_ok=True)
            after = self._abilities(f"t{threads}-after", machine, threads, progress)
        turns = [self._turns(c, threads, found[c.name]) for c in options.contenders]
        return ThreadRuns(threads=threads, before=before, after=after, turns=turns)

    def _place(self, contender: Contender, threads: int, what: str) -> Path:
        return self.kept / f"t{threads}-{contender.file_name}-{what}"

    def _round(self, contender: Contender, threads: int, number: int) -> Path:
        return self._place(contender, threads, f"round{number + 1}.json")

    def _complete(self, contender: Contender, threads: int) -> bool:
        files = [self._round(contender, threads, number) for number in range(self.options.rounds)]
        files += [self._place(contender, threads, name) for name in ("image.npz", "open.json", "warm-up.json")]
        return all(file.is_file() for file in files)

    def _abilities(self, name: str, machine: Child, threads: int, progress: "tqdm[Any]") -> dict[str, Any]:
        progress.set_description(f"{threads} threads, the machine")
        found = self.once(name, lambda: machine.ask("abilities", threads=threads))
        progress.update()
        return found

    def _open(self, child: Child, contender: Contender, threads: int, progress: "tqdm[Any]") -> None:
        """Load it and let it make its first image, which is kept and does not count."""
        progress.set_description(f"{threads} threads, warm-up, {contender.name}")
        folder = str(self.options.bundles[0].folder)
        work = self.options.work.to_json()
        opening = child.ask(
            "open", kind=contender.kind, source=contender.source, bundle=folder, threads=threads, work=work
        )
        image = self._place(contender, threads, "image.npz")
        warm_up = child.ask("image", save=str(image))
        _write(self._place(contender, threads, "open.json"), opening)
        _write(self._place(contender, threads, "warm-up.json"), warm_up)
        progress.update()

    def _agreement(
        self, contender: Contender, threads: int, progress: "tqdm[Any]"
    ) -> tuple[Agreement | None, list[dict[str, Any]]]:
        """How far its image is the reference's, and what a bundle launches.

        Raises:
            BenchError: it is too far from it.
        """
        if contender == self.reference:
            return None, []
        bundle, surveyed = self.bundles.get(contender.name), None
        reference = self._place(self.reference, threads, "image.npz")
        if bundle is not None:
            progress.set_description(f"{threads} threads, bits of {contender.name}")
            surveyed = self._survey(contender, threads, reference)
            progress.update()
        found = agreement(
            reference,
            self._place(contender, threads, "image.npz"),
            self.options.bundles[0].model.tokens_per_step,
            surveyed["forced_by_patch"] if surveyed else None,
            bundle,
        )
        if bundle is not None:
            require_same(bundle, found, self.options.max_bit_flips)
        return found, surveyed["launches"] if surveyed else []

    def _survey(self, contender: Contender, threads: int, reference: Path) -> dict[str, Any]:
        order = {"source": contender.source, "threads": threads, "work": self.options.work.to_json()}

        def ask() -> dict[str, Any]:
            with Child(contender.name, threads) as child:
                return child.ask("survey", **order, reference=str(reference))

        return self.once(f"t{threads}-{contender.file_name}-survey", ask)

    def _turns(self, contender: Contender, threads: int, found: tuple[Agreement | None, list[dict[str, Any]]]) -> Turns:
        opening, warm_up, *rounds = (
            json.loads(file.read_text())
            for file in (
                self._place(contender, threads, "open.json"),
                self._place(contender, threads, "warm-up.json"),
                *(self._round(contender, threads, number) for number in range(self.options.rounds)),
            )
        )
        if len({run["tokens_sha256"] for run in (warm_up, *rounds)}) > 1:
            raise BenchError(
                f"{contender.name} drew other tokens in one run than in another from the same noise with {threads} "
                "threads: no speed is shown"
            )
        return Turns(
            contender=contender,
            opening=opening,
            warm_up=warm_up,
            rounds=rounds,
            agreement=found[0],
            launches=found[1],
        )


def _beside_others(child: Child) -> dict[str, Any]:
    """One image, with how many processors were busy for others meanwhile."""
    busy, started = busy_seconds(), perf_counter()
    answer = child.ask("image", save=None)
    spent = perf_counter() - started
    return {**answer, "others": max(0.0, (busy_seconds() - busy - answer["cpu"]) / spent)}


def versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def _fingerprint(checkpoint: Path) -> list[list[Any]]:
    """Its files, by size and time of change."""
    files = sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else [checkpoint]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _write(path: Path, value: Any) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
