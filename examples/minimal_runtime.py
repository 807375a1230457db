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
from PIL import Image


def normals(seed: int, stream: int, patch: int, steps: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draws of one patch of one image, float32 [steps, *shape]: Philox bits, then Box-Muller."""
    count = int(np.prod(shape))
    blocks = -(-count // 8)  # of four 64-bit integers, two normals each
    raw = np.random.Philox(key=[seed, stream], counter=[0, patch, 0, 0]).random_raw(steps * blocks * 4)
    raw = raw.reshape(steps, -1)
    radius = np.sqrt(-2 * np.log(((raw >> np.uint64(32)) + 1.0) / 2.0**32))
    angle = (raw & np.uint64(0xFFFFFFFF)) * (2 * np.pi / 2.0**32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(steps, -1)[:, :count].reshape(steps, *shape).astype(np.float32)


def schedule(steps: int, shift: float, sampler: str) -> tuple[np.ndarray, np.ndarray]:
    """Times [steps + 1] and coefficients A, B, C [steps + 1, 3], computed in float64."""
    grid = np.linspace(0, 0.95, steps + 1)
    with np.errstate(divide="ignore"):
        grid = (1 / shift) / (1 / shift + (1 / grid - 1))
    t, dt = grid[:-1], np.diff(grid)
    b = (1 + t if sampler == "sde" else 1) * dt / np.maximum(1 - t, 0.05)
    a, c = (1 - dt - b, np.sqrt(2 * (1 - t) * dt)) if sampler == "sde" else (1 - b, 0 * b)
    coefficients = np.vstack([np.stack([a, b, c], axis=1), [0, 1, 0]])
    return np.append(t, 0.95).astype(np.float32), coefficients.astype(np.float32)


class Bundle:
    """Sessions of a bundle's stages."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        self.model, self.sampling = self.manifest["model"], self.manifest["sampling"]
        graphs = {name: folder / stage["graph"]["path"] for name, stage in self.manifest["stages"].items()}
        onnxruntime.set_default_logger_severity(3)  # errors; it warns of each cache that is not updated in place
        cpu = ["CPUExecutionProvider"]
        self.sessions = {name: onnxruntime.InferenceSession(path, providers=cpu) for name, path in graphs.items()}

    def run(self, stage: str, **inputs: Any) -> dict[str, Any]:
        """Run a stage with those of the inputs that it has; outputs by name."""
        session = self.sessions[stage]
        fed = {tensor.name: np.asarray(inputs[tensor.name]) for tensor in session.get_inputs()}
        return dict(zip([tensor.name for tensor in session.get_outputs()], session.run(None, fed), strict=True))

    def rows(self, subjects: Sequence[int | str], size: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids and padding of all rows: the conditional one of each image, then the unconditional ones."""
        text = self.manifest["text"]
        if text is None:
            classes = np.array([*subjects, *[self.model["num_classes"]] * len(subjects)], np.int64)
            return classes, np.zeros(len(classes), np.int64)
        from tokenizers import Tokenizer

        encode = Tokenizer.from_file(str(self.folder / text["tokenizer"]["path"])).encode
        prompts = [text["conditional"].replace("{prompt}", str(subject)) for subject in subjects]
        prompts += [text["unconditional"]] * len(subjects)
        ids = [encode(prompt).ids + text["suffixes"][size] for prompt in prompts]
        longest = max(map(len, ids))
        padding = np.array([longest - len(row) for row in ids], np.int64)
        return np.array([[0] * (longest - len(row)) + row for row in ids], np.int64), padding

    def generate(self, ids: np.ndarray, padding: np.ndarray, seeds: list[int], width: int, height: int) -> np.ndarray:
        """Tokens of -1 and +1 in generation order, float32 [B, h*w, C]; always guided: two rows an image."""
        model, cache, sampling = self.model, self.manifest["cache"], self.sampling
        images, rows, block, bits = len(seeds), len(ids), model["tokens_per_step"], model["bits"]
        across, down = width // model["pixels_per_token"], height // model["pixels_per_token"]
        patches, length = across * down // block, cache["length"]
        shape = (rows, cache["heads"], length, cache["head_dim"])
        parts = [f"{layer}.{part}" for layer in range(cache["layers"]) for part in ("key", "value")]
        past = {f"past_key_values.{part}": np.zeros(shape, cache["dtype"]) for part in parts}
        times, coefficients = schedule(sampling["steps"], sampling["time_shift"], sampling["sampler"])
        time_embeddings = self.run("time", times=times)["time_embeddings"]
        embeddings = self.run("prompt", class_ids=ids, input_ids=ids)["embeddings"]
        start, made = 0, []
        for patch in range(patches):
            count, slots = embeddings.shape[1], np.arange(length)
            index = np.arange(count)
            last_seen = start + np.where(index < count - block, index, count - 1)
            mask = (slots <= last_seen[:, None]) & (slots >= padding[:, None, None])
            mask |= slots == start + index[:, None]
            where = {"patch_index": np.array([patch]), "patches_across": np.array([across // model["patch_side"]])}
            positions = np.maximum(start + index - padding[:, None], 0)
            at = np.full(rows, start)
            seen = {"positions": positions, "mask": mask[:, None], "cache_position": at}
            result = self.run("backbone", embeddings=embeddings, **seen, **where, **past)
            past = {f"past_key_values.{part}": result[f"present.{part}"] for part in parts}
            start += count
            guidance = sampling["guidance"]
            if sampling["guidance_schedule"] == "linear":
                guidance = 1 + (guidance - 1) * patch / patches
            streams = (0, 1) if guidance == 1 else (0,)  # at guidance 1 all rows are drawn apart
            draws = [(seed, stream) for stream in streams for seed in seeds]
            noise = [normals(*draw, patch, sampling["steps"] + 1, (block, bits)) for draw in draws]
            noise = np.stack(noise, axis=1)  # [steps + 1, draws, P, C]
            if sampling["sampler"] == "ode":
                noise[1:] = 0
            x, of = noise[0], np.arange(rows) % len(draws)
            tables = self.run("modulation", time_embeddings=time_embeddings, condition=result["condition"])
            for k, abc in enumerate(coefficients):
                step = {"coefficients": abc, "guidance": np.array([guidance], np.float32), "rows": of}
                modulation = {name: table[k] for name, table in tables.items()}
                drawn = noise[min(k + 1, len(noise) - 1)]  # the last evaluation multiplies it by zero
                x = self.run("head", x=x, noise=drawn, **step, **modulation)["x_next"]
            result = self.run("tokens", x=x, rows=of, **where)
            embeddings = result["embeddings"]
            made.append(result["tokens"][:images])
        return np.concatenate(made, axis=1)

    def decode(self, tokens: np.ndarray, seeds: list[int], width: int, height: int) -> np.ndarray:
        """Pixels uint8 [B, H, W, 3]."""
        side, bits = self.model["patch_side"], self.model["bits"]
        pixels = self.model["pixels_per_token"] * side
        shape = (len(tokens), height // pixels, width // pixels, side * side, bits)
        noise = np.concatenate([normals(seed, 2, 0, 1, tokens.shape[1:]) for seed in seeds])
        return self.run("decoder", tokens=tokens.reshape(shape), noise=noise.reshape(shape))["pixels"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--classes", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--prompt", action="append")
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
