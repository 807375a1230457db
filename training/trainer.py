"""The training loop: batches by step number, AdamW, averaged weights, held-out scores, resumable states.

Knows images and labels, not their loss: that is the ``Objective``.
"""

import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bitdance_edge.interrupts import SAME_WITHIN, SIGNALS
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.errors import StorageError
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.image_set import ImageSet, TrainingImages, batch_rows
from bitdance_edge.training.processes import accelerator, in_any, mean_of_all
from bitdance_edge.training.recipes import TrainingRecipe
from bitdance_edge.training.resume import load_optimizer, read_state, require_same_run, require_weights
from bitdance_edge.training.schedule import Average, copy_weights, learning_rate, parameter_groups, trainable

STATE_FILE = "resume.pt"
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # of Accelerate: each process would hold a part of the weights
logger = logging.getLogger(__name__)


class Objective(nn.Module, ABC):
    """What is trained: ``forward`` computes the loss, ``score`` rates the weights on held-out images."""

    score_name: str

    def inputs(self, batch: ImageSet) -> tuple[Tensor, Tensor]:
        """Return what ``forward`` takes of a batch, on the CPU."""
        return batch.images, batch.labels

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of uint8 ``[B, H, W, 3]`` and int64 classes ``[B]``; draws are torch's global ones."""

    @abstractmethod
    def score(self, held_out: ImageSet) -> float:
        """Return the score that ``score_name`` names."""


# Called with the averaged weights in place: progress, mean loss since the last call, images a second.
Watcher = Callable[["Progress", float, float], None]


@dataclass
class Progress:
    """The progress of a run; part of its resumable state and of its report."""

    step: int = 0
    cpu_seconds: float = 0.0  # of this process, all threads
    score: float | None = None


class Trainer:
    """One run of ``objective`` on ``train``; the resumable state is written to ``folder``.

    Args:
        precision: ``no`` (float32) or ``bf16``, as Accelerate names them.
        start: what the weights were before the first step, as text; a resumed run must have the same.
        watch: called after each held-out score, in the process that writes.

    Raises:
        TrainingError: there is no state to resume, or it is of another recipe; a state would be overwritten; or the
            batch cannot be divided among the processes.
    """

    def __init__(
        self,
        objective: Objective,
        recipe: TrainingRecipe,
        train: TrainingImages,
        held_out: ImageSet,
        folder: Path,
        *,
        precision: str = "no",
        resume: bool = False,
        start: str = "",
        watch: Watcher | None = None,
    ) -> None:
        self.objective, self.recipe, self.train, self.held_out = objective, recipe, train, held_out
        self.start, self.watch = start, watch
        self.accelerator = accelerator(precision)
        self._require_divisible()
        self.objective.to(self.accelerator.device)
        self.average = Average(objective, recipe.ema_decay)
        optimizer = torch.optim.AdamW(parameter_groups(objective, recipe.weight_decay), betas=(0.9, 0.95))
        self.network, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.progress = Progress()
        self.state_file = folder / STATE_FILE
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            self._restore()
        elif self.state_file.exists():
            raise TrainingError(f"{folder} holds an interrupted run; give --resume to continue it, or another --out")

    def _require_divisible(self) -> None:
        """Raises: TrainingError: the batch or the weights cannot be distributed as asked."""
        if self.accelerator.distributed_type.name in SHARDED:
            raise TrainingError(
                f"accelerate is set to {self.accelerator.distributed_type.name}, but every process holds all weights "
                "here; launch without it, and train a large model by --set lora_rank=16"
            )
        parts = self.accelerator.num_processes * self.recipe.accumulation
        if self.recipe.batch_size % parts:
            raise TrainingError(
                f"batch_size is {self.recipe.batch_size}; it must be a multiple of "
                f"the {self.accelerator.num_processes} processes times the accumulation of {self.recipe.accumulation}. "
                "Set it with --batch-size"
            )

    def run(self) -> Progress:
        """Train to the recipe's last step; the objective then has the averaged weights.

        Ctrl-C finishes the current step, saves the state and raises KeyboardInterrupt.
        """
        started, spent = time.process_time(), self.progress.cpu_seconds
        self._losses: list[Tensor] = []  # since the last score
        self._scored_at = time.monotonic()
        steps = range(self.progress.step, self.recipe.steps)
        with torch.random.fork_rng(), _deferred_interrupt() as interrupted, self._bar() as bar:
            for step, batch in zip(steps, self._batches(steps), strict=True):
                loss = self._step(step, batch)
                self.progress.step = step + 1
                self.progress.cpu_seconds = spent + time.process_time() - started
                if self.accelerator.is_main_process:
                    self._report(bar, loss)
                if in_any(self.accelerator, interrupted.is_set()):
                    self._save()
                    self.accelerator.wait_for_everyone()  # a launcher ends all as soon as one has ended
                    raise KeyboardInterrupt("the state is saved; repeat the command with --resume to continue")
        self.average.store()
        return self.progress

    def _batches(self, steps: range) -> Iterator[ImageSet]:
        """Yield this process's images of each step; those in files are read while the step before is computed."""
        if isinstance(self.train, ImageSet):
            yield from map(self._batch, steps)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
            reading: Future[ImageSet] | None = None
            for step in steps:
                batch = (reading or reader.submit(self._batch, step)).result()
                if step + 1 < steps.stop:
                    reading = reader.submit(self._batch, step + 1)
                yield batch

    def _batch(self, step: int) -> ImageSet:
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        rows = batch_rows(len(self.train), self.recipe.batch_size, step, self.recipe.seed, self.train.order)
        return self.train[rows[rank::processes]]

    def _step(self, step: int, batch: ImageSet) -> Tensor:
        """Make one update, with random numbers seeded by the step; return the loss of all processes, on its device."""
        device, parts = self.accelerator.device, self.recipe.accumulation
        seeds = (self.recipe.seed, step, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step)
        total = torch.zeros((), device=device)
        for part in range(parts):
            inputs = self.objective.inputs(batch[np.arange(part, len(batch), parts)] if parts > 1 else batch)
            last = part == parts - 1  # processes exchange gradients once a step
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                loss = self.network(*(tensor.to(device) for tensor in inputs)) / parts
                self.accelerator.backward(loss)
            total += loss.detach()
        total = mean_of_all(self.accelerator, total)
        if not torch.isfinite(total):
            raise TrainingError(f"the loss is {total.item()} at step {step + 1}; try a smaller --learning-rate")
        self.accelerator.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(step)
        return total

    def _report(self, bar: tqdm, loss: Tensor) -> None:
        """Update the progress line; score and save at the recipe's intervals."""
        step, recipe = self.progress.step, self.recipe
        self._losses.append(loss)
        if step % recipe.score_every == 0 or step == recipe.steps:
            with self.average.applied():
                self.progress.score = self.objective.score(self.held_out)
                self._watched()
            logger.info(
                "step %d: loss %.4f, held-out %s %.4f", step, loss, self.objective.score_name, self.progress.score
            )
        if step % recipe.save_every == 0:
            self._save()
        shown = {"loss": f"{loss.item():.3f}", "images/s": f"{(bar.format_dict['rate'] or 0) * recipe.batch_size:.0f}"}
        if self.progress.score is not None:
            shown[f"held-out {self.objective.score_name}"] = f"{self.progress.score:.3f}"
        bar.set_postfix(shown, refresh=False)
        bar.update(step - bar.n)

    def _watched(self) -> None:
        seconds = max(time.monotonic() - self._scored_at, 1e-9)
        if self.watch is not None:
            mean, images = torch.stack(self._losses).mean().item(), len(self._losses) * self.recipe.batch_size
            self.watch(self.progress, mean, images / seconds)
        self._losses, self._scored_at = [], time.monotonic()

    def _bar(self) -> tqdm:
        return tqdm(
            initial=self.progress.step,
            total=self.recipe.steps,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            disable=not self.accelerator.is_main_process,
        )

    def _save(self) -> None:
        """Write the state to another file and rename it, so that an interrupted write loses nothing."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "recipe": asdict(self.recipe),
            "start": self.start,
            "images": len(self.train),
            "progress": asdict(self.progress),
            "weights": {name: parameter.detach() for name, parameter in trainable(self.objective).items()},
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
        }
        try:
            with written_whole(self.state_file) as file:
                torch.save(state, file)
        except (StorageError, RuntimeError) as error:  # PyTorch's writer reports a full disk as a RuntimeError
            reason = str(error).splitlines()[0].removeprefix(f"cannot write {self.state_file}: ")
            again = "continue with --resume" if self.state_file.exists() else "start again"
            raise TrainingError(
                f"cannot write {self.state_file} ({reason}); check its permissions and the free space, then {again}"
            ) from None

    def _restore(self) -> None:
        state = read_state(self.state_file, self.accelerator.device)
        require_same_run(state, self.state_file, self.recipe, len(self.train), self.start)
        require_weights(state, self.state_file, trainable(self.objective))
        load_optimizer(self.optimizer, state["optimizer"], self.state_file)
        copy_weights(self.objective, state["weights"])
        self.average.weights = state["average"]
        self.progress = Progress(**state["progress"])


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C, or a polite kill, sets instead of raising in the middle of an update.

    The second one raises. In the main thread only, which alone receives signals.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    handled = [number for number in SIGNALS if callable(signal.getsignal(number))]  # none that is ignored
    previous = {number: signal.getsignal(number) for number in handled}
    first = 0.0

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if not interrupted.is_set():
            first = time.monotonic()
            interrupted.set()
        elif time.monotonic() - first > SAME_WITHIN:
            restore()
            raise KeyboardInterrupt

    try:
        for number in handled:
            signal.signal(number, stop)
        yield interrupted
    finally:
        restore()
