"""Token order: the grid cell of each token of the sequence, and its position in the image.

Next-patch order cuts the token grid into p x p patches; patches, and tokens inside a patch, are in raster order (paper
section 3.3). With one token a step that is plain raster order.
"""

import torch
from torch import Tensor


def patch_permutation(height: int, width: int, patch_side: int) -> Tensor:
    """Return the raster index of each token of the sequence, int64 ``[height * width]``."""
    raster = torch.arange(height * width).view(height // patch_side, patch_side, width // patch_side, patch_side)
    return raster.transpose(1, 2).reshape(-1)


def latent_to_sequence(latent: Tensor, patch_side: int) -> Tensor:
    """Turn ``[B, C, h, w]`` into ``[B, h*w, C]``, in generation order."""
    order = patch_permutation(latent.shape[2], latent.shape[3], patch_side).to(latent.device)
    return latent.flatten(2).transpose(1, 2).index_select(1, order)


def sequence_to_latent(sequence: Tensor, height: int, width: int, patch_side: int) -> Tensor:
    """Turn ``[B, h*w, C]`` into ``[B, C, h, w]``, contiguous: GroupNorm loses accuracy on channels-last strides."""
    # The index in the sequence of each raster cell: a patch is itself a raster of p x p tokens.
    index = torch.arange(height * width).view(height // patch_side, width // patch_side, patch_side, patch_side)
    index = index.transpose(1, 2).reshape(-1).to(sequence.device)
    return sequence.index_select(1, index).transpose(1, 2).unflatten(2, (height, width)).contiguous()


def latent_to_patches(latent: Tensor, patch_side: int) -> Tensor:
    """Turn ``[B, C, h, w]`` into ``[B, h/p, w/p, p*p, C]``: the sequence by rows and columns of patches."""
    patches = latent.unflatten(3, (-1, patch_side)).unflatten(2, (-1, patch_side))  # [B, C, h/p, p, w/p, p]
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)


def patches_to_latent(patches: Tensor, patch_side: int) -> Tensor:
    """Turn ``[B, h/p, w/p, p*p, C]`` back into ``[B, C, h, w]``, contiguous as in ``sequence_to_latent``."""
    squares = patches.unflatten(3, (patch_side, patch_side))  # [B, h/p, w/p, p, p, C]
    return squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).contiguous()


def rotary_table(grid: int, unrotated: int, head_dim: int, base: float, patch_side: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the 2-D rotary embedding, float32 ``[unrotated + grid*grid, head_dim/2]`` each.

    The first ``unrotated`` rows (class tokens and queries) have angle 0. The position of an image token is
    (column + 1.5, row + 1.5); the first half of the pairs is rotated by the column, the second half by the row.
    """
    pairs = head_dim // 4
    frequencies = base ** (-torch.arange(pairs, dtype=torch.float32) / pairs)
    cell = patch_permutation(grid, grid, patch_side)
    column, row = cell % grid + 1.5, cell // grid + 1.5
    angles = torch.cat([column[:, None] * frequencies, row[:, None] * frequencies], dim=1)
    angles = torch.cat([torch.zeros(unrotated, 2 * pairs), angles])
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of ``x`` ``[B, H, T, d]`` by the angles of ``cos`` and ``sin``, ``[T, d/2]`` each."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate as ``rotate`` does, with pairs of one value of the last axis's first half and one of its second."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def sinusoids(length: int, width: int) -> Tensor:
    """Return sines, then cosines, of positions 0 to ``length - 1``: float32 ``[length, width]``, base 10000."""
    half = width // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
