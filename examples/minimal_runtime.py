"""A complete runtime for bundles in about a hundred lines: numpy, ONNX Runtime, Pillow, and nothing of bitdance-edge.

docs/format.md explains every line. It makes the same tokens as bitdance-edge, at a fraction of the speed.

    python minimal_runtime.py bundles/digits-4x --classes 3,7 --seed 1
    python minimal_runtime.py bundles/shapes-16x --prompt "a red circle above a blue square" --seed 1
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy import ndarray
from PIL import Image


def normals(seed: int, stream: int, patch: int, steps: int, shape: tuple[int, ...]) -> ndarray:
    """Draws of one patch of one image, float32 [steps, *shape]: Philox bits, then Box-Muller."""
    count = int(np.prod(shape))
    blocks = -(-count // 8)  # of four 64-bit integers, two normals each
    raw = np.random.Philox(key=[seed, stream], counter=[0, patch, 0, 0]).random_raw((steps, blocks * 4))
    radius = np.sqrt(-2 * np.log(((raw >> np.uint64(32)) + 1.0) / 2.0**32))
    angle = (raw & np.uint64(0xFFFFFFFF)) * (2 * np.pi / 2.0**32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(steps, -1)[:, :count].reshape(steps, *shape).astype(np.float32)


def schedule(steps: int, shift: float, sampler: str) -> tuple[ndarray, ndarray]:
    """Times [steps + 1] and coefficients A, B, C [steps + 1, 3], computed in float64."""
    grid = np.linspace(0, 0.95, steps + 1)
    with np.errstate(divide="ignore"):
        grid = (1 / shift) / (1 / shift + (1 / grid - 1))
    t, dt = grid[:-1], np.diff(grid)
    b = (1 + t if sampler == "sde" else 1) * dt / np.maximum(1 - t, 0.05)
    a, c = (1 - dt - b, np.sqrt(2 * (1 - t) * dt)) if sampler == "sde" else (1 - b, 0 * b)
    coefficients = np.vstack([np.stack([a, b, c], axis=1), [0, 1, 0]])
    return np.append(t, 0.95).astype(np.float32), coefficients.astype(np.float32)


def attention(start: int, count: int, block: int, padding: ndarray, slots: int) -> tuple[ndarray, ndarray]:
    """Positions int64 [R, T] and mask bool [R, 1, T, S] of T = count tokens from a slot of the cache on."""
    index = np.arange(count)
    last_seen = start + np.where(index < count - block, index, count - 1)  # the last patch sees all of itself
    slot = np.arange(slots)
    mask = (slot <= last_seen[:, None]) & (slot >= padding[:, None, None])
    mask |= slot == start + index[:, None]  # padding sees itself
    return np.maximum(start + index - padding[:, None], 0), mask[:, None]


class Bundle:
    """A bundle's manifest, the sessions of its stages, and its times."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self.model, self.sampling = self.manifest["model"], self.manifest["sampling"]
        graphs = {name: folder / stage["graph"]["path"] for name, stage in self.manifest["stages"].items()}
        onnxruntime.set_default_logger_severity(3)  # errors; it warns of each cache that is not updated in place
        cpu = ["CPUExecutionProvider"]
        self.sessions = {name: onnxruntime.InferenceSession(path, providers=cpu) for name, path in graphs.items()}
        steps, shift, sampler = (self.sampling[name] for name in ("steps", "time_shift", "sampler"))
        times, self.coefficients = schedule(steps, shift, sampler)
        self.time_embeddings = self.run("time", times=times)["time_embeddings"]

    def run(self, stage: str, **inputs: ndarray) -> dict[str, Any]:
        """Run a stage with those of the inputs that it has; outputs by name."""
        session = self.sessions[stage]
        fed = {tensor.name: inputs[tensor.name] for tensor in session.get_inputs()}
        return dict(zip([tensor.name for tensor in session.get_outputs()], session.run(None, fed), strict=True))

    def rows(self, subjects: Sequence[int | str], size: str) -> tuple[ndarray, ndarray]:
        """Ids and padding of all rows: the conditional one of each image, then the unconditional ones."""
        text = self.manifest["text"]
        if text is None:
            classes = np.array([*subjects, *[self.model["num_classes"]] * len(subjects)])
            return classes, np.zeros_like(classes)
        from tokenizers import Tokenizer

        encode = Tokenizer.from_file(str(self.folder / text["tokenizer"]["path"])).encode
        prompts = [text["conditional"].replace("{prompt}", str(subject)) for subject in subjects]
        prompts += [text["unconditional"]] * len(subjects)
        ids = [encode(prompt).ids + text["suffixes"][size] for prompt in prompts]
        padding = max(map(len, ids)) - np.array([len(row) for row in ids])
        return np.array([[0] * pads + row for pads, row in zip(padding, ids, strict=True)]), padding

    def generate(self, ids: ndarray, padding: ndarray, seeds: list[int], width: int, height: int) -> ndarray:
        """Tokens of -1 and +1 in generation order, float32 [B, h*w, C]; always guided: two rows an image."""
        model, cache, block = self.model, self.manifest["cache"], self.model["tokens_per_step"]
        patches = width * height // model["pixels_per_token"] ** 2 // block
        across = np.array([width // model["pixels_per_token"] // model["patch_side"]])
        shape = (len(ids), cache["heads"], cache["length"], cache["head_dim"])
        parts = [f"{layer}.{part}" for layer in range(cache["layers"]) for part in ("key", "value")]
        past = {f"past_key_values.{part}": np.zeros(shape, cache["dtype"]) for part in parts}
        embeddings = self.run("prompt", class_ids=ids, input_ids=ids)["embeddings"]
        full, linear = self.sampling["guidance"], self.sampling["guidance_schedule"] == "linear"
        start, made = 0, []
        for patch in range(patches):
            where = {"patch_index": np.array([patch]), "patches_across": across}
            positions, mask = attention(start, embeddings.shape[1], block, padding, cache["length"])
            seen = {"positions": positions, "mask": mask, "cache_position": np.full(len(ids), start)}
            result = self.run("backbone", embeddings=embeddings, **seen, **where, **past)
            past = {f"past_key_values.{part}": result[f"present.{part}"] for part in parts}
            start += embeddings.shape[1]
            guidance = 1 + (full - 1) * patch / patches if linear else full
            x, rows = self.denoise(result["condition"], seeds, patch, guidance)
            result = self.run("tokens", x=x, rows=rows, **where)
            embeddings = result["embeddings"]
            made.append(result["tokens"][: len(seeds)])
        return np.concatenate(made, axis=1)

    def denoise(self, condition: ndarray, seeds: list[int], patch: int, guidance: float) -> tuple[ndarray, ndarray]:
        """Predictions of a patch, float32 [draws, P, C], and the draw that each row takes, int64 [R]."""
        streams = (0, 1) if guidance == 1 else (0,)  # at guidance 1 all rows are drawn apart
        draws = [(seed, stream) for stream in streams for seed in seeds]
        shape = (self.model["tokens_per_step"], self.model["bits"])
        noise = np.stack([normals(*draw, patch, len(self.coefficients), shape) for draw in draws], axis=1)
        rows, x = np.arange(len(condition)) % len(draws), noise[0]
        fixed = {"guidance": np.array([guidance], np.float32), "rows": rows}
        tables = self.run("modulation", time_embeddings=self.time_embeddings, condition=condition)
        for k, abc in enumerate(self.coefficients):
            modulation = {name: table[k] for name, table in tables.items()}
            drawn = noise[(k + 1) % len(noise)]  # the last evaluation multiplies it by zero, as ode does all of them
            x = self.run("head", x=x, coefficients=abc, noise=drawn, **fixed, **modulation)["x_next"]
        return x, rows

    def decode(self, tokens: ndarray, seeds: list[int], width: int, height: int) -> ndarray:
        """Pixels uint8 [B, H, W, 3]."""
        side, bits = self.model["patch_side"], self.model["bits"]
        pixels = self.model["pixels_per_token"] * side
        shape = (len(tokens), height // pixels, width // pixels, side * side, bits)
        noise = np.concatenate([normals(seed, 2, 0, 1, tokens.shape[1:]) for seed in seeds])
        return self.run("decoder", tokens=tokens.reshape(shape), noise=noise.reshape(shape))["pixels"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--classes", type=lambda text: [int(part) for part in text.split(",")])
    subject.add_argument("--prompt", action="append")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bundle, subjects = Bundle(args.bundle), args.classes or args.prompt
    width, height = bundle.model["sizes"][0]["width"], bundle.model["sizes"][0]["height"]
    seeds = [args.seed + i for i in range(len(subjects))]
    tokens = bundle.generate(*bundle.rows(subjects, f"{width}x{height}"), seeds, width, height)
    for seed, pixels in zip(seeds, bundle.decode(tokens, seeds, width, height), strict=True):
        Image.fromarray(pixels).save(f"seed{seed}.png")
        print(f"seed{seed}.png")


if __name__ == "__main__":
    main()
