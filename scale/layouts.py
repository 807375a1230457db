"""A job's images in the folders that the scorers of two benchmarks of prompts read.

- ``geneval``: ``00000/metadata.jsonl`` and ``00000/samples/0000.png`` and so on, a folder for each line of its
  ``evaluation_metadata.jsonl`` (https://github.com/djghosh13/geneval).
- ``dpg``: ``NAME.png`` for each ``NAME.txt``, of one image, or of four in two rows, as its scorer's ``--pic-num`` says
  (https://github.com/TencentQQGYLab/ELLA, ``dpg_bench``).
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from bitdance_edge.runtime import save_png
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.prompts import Prompt
from bitdance_edge.scale.sources import Job

LAYOUTS = ("geneval", "dpg")
DPG_SIDES = {1: 1, 4: 2}  # images of a prompt -> of a row in its picture


def write_layout(job: Job, prompts: Sequence[Prompt], layout: str, out: Path) -> int:
    """Write each image of a job where a scorer looks for it; returns the number of prompts.

    Raises:
        ScaleError: the job is of other prompts, or has a number of images that the scorer does not take.
        StorageError: a picture cannot be written.
    """
    if job.plan.subjects != tuple(prompt.text for prompt in prompts):
        raise ScaleError(
            f"{job.folder} was not made of these {len(prompts)} prompts; give what bulk --prompts was given"
        )
    if layout == "geneval":
        if not all(prompt.line for prompt in prompts):
            raise ScaleError("GenEval's scorer needs the lines of evaluation_metadata.jsonl: give that as --prompts")
    elif not all(prompt.name for prompt in prompts):
        raise ScaleError("DPG-Bench's scorer needs the names of its .txt files: give their folder as --prompts")
    elif job.plan.count not in DPG_SIDES:
        raise ScaleError(f"{job.folder} has {job.plan.count} images a prompt; DPG-Bench takes 1 or 4: bulk --count 4")
    put = _put_geneval if layout == "geneval" else _put_dpg
    for row in tqdm(job.rows(), "writing", total=job.images, unit="image", leave=False, disable=None):
        number, sample = row.index % len(prompts), row.index // len(prompts)
        put(out, number, prompts[number], sample, Image.fromarray(row.pixels), job.plan.count)
    return len(prompts)


def _put_geneval(out: Path, number: int, prompt: Prompt, sample: int, image: Image.Image, count: int) -> None:
    folder = out / f"{number:05d}"
    save_png(image, folder / "samples" / f"{sample:04d}.png")
    if sample == count - 1:
        with written_whole(folder / "metadata.jsonl") as file:
            file.write(f"{prompt.line}\n".encode())


def _put_dpg(out: Path, number: int, prompt: Prompt, sample: int, image: Image.Image, count: int) -> None:
    """Put one image into the picture of its prompt. Those of a prompt are far apart in a job, so it is read again."""
    path, side = out / f"{prompt.name}.png", DPG_SIDES[count]
    if sample == 0:
        picture = Image.new("RGB", (side * image.width, side * image.height))
    else:
        with Image.open(path) as before:
            picture = before.convert("RGB")
    picture.paste(image, (sample % side * image.width, sample // side * image.height))
    save_png(picture, path)
