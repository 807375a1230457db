"""Plugs ``model/`` into the parity check (``parity_check.py``): everything crosses as numpy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_check import AdapterBase
from safetensors.torch import load_file

from bitdance_edge.model import BitDance, DiffusionHead, HeadConfig, load_generator, load_text_to_image, load_tokenizer
from bitdance_edge.model.backbone import GrowingCache
from bitdance_edge.model.head import timestep_embedding
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.model.sampler import noise_scale, sample_patch, time_grid
from bitdance_edge.model.tokenizer import Tokenizer

Array = np.ndarray


class Adapter(AdapterBase):
    model: BitDance
    head_: DiffusionHead
    tokenizer: Tokenizer
    shift: float

    def open(self, fixture_dir: str, config: dict[str, Any], meta: dict[str, Any]) -> None:
        torch.set_grad_enabled(False)
        self.config = config
        folder = Path(fixture_dir)
        kind = folder.name.split("_")[0]
        if kind == "cc":
            self.model = load_generator(folder / "state.safetensors")
            self.head_, self.tokenizer = self.model.head, self.model.tokenizer
            self.shift = self.model.config.time_shift
        elif kind == "vae":
            self.tokenizer = load_tokenizer(folder / "state.safetensors")
        elif kind == "head":
            self.head_ = self._open_head(folder, config)
            self.shift = config["time_shift"]
        elif kind == "t2i":
            self.text = load_text_to_image(folder)
            self.prompts = PromptTokenizer.open(folder / "tokenizer.json", self.text.config)
            self.head_, self.tokenizer = self.text.head, self.text.tokenizer
            self.shift = self.text.config.time_shift
        elif kind != "sampler":
            raise NotImplementedError

    @staticmethod
    def _open_head(folder: Path, config: dict[str, Any]) -> DiffusionHead:
        sizes = HeadConfig.text_to_image(config)
        if not folder.name.startswith("head_x"):
            sizes = HeadConfig.class_conditional(
                bits=sizes.bits,
                condition_width=sizes.condition_width,
                width=sizes.width,
                blocks=sizes.blocks,
                adaln_groups=sizes.adaln_groups,
                tokens_per_step=sizes.tokens_per_step,
            )
        head = DiffusionHead(sizes)
        state = load_file(folder / "state.safetensors")
        head.load_state_dict({key.removeprefix("net."): value.float() for key, value in state.items()})
        return head.eval()

    def vae_encoder(self, image: Array) -> Array:
        return self.tokenizer.encoder(torch.from_numpy(image)).numpy()

    def vae_encode(self, image: Array) -> Array:
        return self.tokenizer.encode(torch.from_numpy(image)).numpy()

    def vae_decode(self, codes: Array) -> Array:
        return self.tokenizer.decode(torch.from_numpy(codes)).numpy()

    def head(self, x: Array, t: Array, c: Array) -> Array:
        patches = x.ndim == 3
        x, c = (array if patches else array[:, None] for array in (x, c))
        clean = self.head_(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(c)).numpy()
        return clean if patches else clean[:, 0]

    def head_sample(self, cond: Array, cfg: float, steps: int, noise: Iterator[Array]) -> Array:
        patches = cond.ndim == 3
        condition = torch.from_numpy(cond if patches else cond[:, None])
        draws = (torch.from_numpy(draw if patches else draw[:, None]) for draw in noise)
        pred = sample_patch(lambda x, t: self.head_(x, t, condition), draws, steps, self.shift, cfg)
        pred = pred.repeat(condition.shape[0] // pred.shape[0], 1, 1)
        return pred.numpy() if patches else pred[:, 0].numpy()

    def ar_start(self, classes: Array, use_cfg: bool) -> None:
        rows = np.concatenate([classes, np.full_like(classes, self.model.config.num_classes)]) if use_cfg else classes
        self.rows = torch.from_numpy(rows)
        self.cache = GrowingCache(self.model.config.tokens_per_step)

    def ar_step(self, i: int, tokens: Array | None) -> Array:
        backbone = self.model.backbone
        embeddings = (
            backbone.embed_classes(self.rows) if tokens is None else backbone.embed_tokens(torch.from_numpy(tokens))
        )
        return self.cache.step(backbone, embeddings).numpy()

    def sample(
        self, classes: Array, steps: int, cfg: float, schedule: str, noise: Iterator[Array]
    ) -> tuple[Array, Array]:
        draws = (torch.from_numpy(draw if draw.ndim == 3 else draw[:, None]) for draw in noise)
        tokens = self.model.sample(torch.from_numpy(classes), steps=steps, guidance=cfg, schedule=schedule, noise=draws)
        latent = self.model.to_latent(tokens)
        return latent.numpy(), self.tokenizer.decode(latent).numpy()

    def loss(self, image: Array, classes: Array, t_raw: Array, e: Array) -> Array:
        tokens = self.model.to_sequence(self.tokenizer.encode(torch.from_numpy(image)))
        noise = torch.from_numpy(e if e.ndim == 3 else e[:, None])
        return self.model.loss(torch.from_numpy(classes), tokens, tokens, torch.from_numpy(t_raw), noise).numpy()

    def time_grid(self, n: int, shift: float) -> tuple[Array, Array, Array]:
        grid = time_grid(n, shift)
        steps = grid.diff()
        used = torch.cat([grid[:1], grid[0] + steps[:-1].cumsum(0)])
        return grid.numpy(), used.numpy(), noise_scale(used, steps).numpy()

    def timestep_embedding(self, t: Array) -> Array:
        return timestep_embedding(torch.from_numpy(t)).numpy()

    def encode_prompt(self, text: str) -> Array:
        return np.array(self.prompts.encode(text))

    def pos_embed(self, h: int, w: int) -> Array:
        return self.text.positions(h, w).numpy()

    def project(self, tokens: Array) -> Array:
        return self.text.projector(torch.from_numpy(tokens)).numpy()

    def t2i_start(
        self, cond_ids: Array, uncond_ids: Array | None, image_size: list[int], num_images: int
    ) -> tuple[Array, Array | None]:
        height, width = image_size
        suffix = self.prompts.suffix(height, width)
        self.across = torch.tensor([width // self.text.config.patch_pixels])
        prompts = [cond_ids] if uncond_ids is None else [cond_ids, uncond_ids]
        self.caches = [GrowingCache(self.text.config.tokens_per_step) for _ in prompts]
        rows = [torch.tensor([[*ids.tolist(), *suffix]]).expand(num_images, -1) for ids in prompts]
        return self._t2i_hidden([self.text.embed_prompt(ids) for ids in rows])

    def t2i_step(self, i: int, tokens: Array) -> tuple[Array, Array | None]:
        embedded = self.text.embed_tokens(torch.from_numpy(tokens), torch.tensor([i]), self.across)
        return self._t2i_hidden(list(embedded.chunk(len(self.caches))))

    def _t2i_hidden(self, embeddings: list[torch.Tensor]) -> tuple[Array, Array | None]:
        hidden = [
            cache.step(self.text.backbone, rows).numpy() for cache, rows in zip(self.caches, embeddings, strict=True)
        ]
        return hidden[0], hidden[1] if len(hidden) > 1 else None

    def t2i_sample(
        self,
        cond_prompt: str,
        uncond_prompt: str,
        image_size: list[int],
        guidance: float,
        steps: int,
        num_images: int,
        noise: Iterator[Array],
    ) -> tuple[Array, Array]:
        height, width = image_size
        suffix = self.prompts.suffix(height, width)
        texts = [cond_prompt, uncond_prompt] if guidance > 1 else [cond_prompt]
        prompts = [torch.tensor([self.prompts.encode(text) + suffix]).expand(num_images, -1) for text in texts]
        grid = (height // self.text.config.tokenizer.downsampling, width // self.text.config.tokenizer.downsampling)
        draws = map(torch.from_numpy, noise)
        patches = self.text.sample_patches(prompts, grid, steps=steps, guidance=guidance, noise=draws)
        latent = self.text.to_latent(torch.cat(list(patches), dim=1), *grid)
        return latent.numpy(), self.tokenizer.decode(latent).numpy()
