"""Many images in one picture."""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

FRAME_GRAY = 96


def contact_sheet(images: Tensor, columns: int) -> Image.Image:
    """Arrange uint8 images ``[N, H, W, 3]``, N a multiple of ``columns``, in rows of one picture, with gray frames."""
    framed = F.pad(images, (0, 0, 1, 1, 1, 1), value=FRAME_GRAY)
    rows = framed.unflatten(0, (-1, columns))  # [R, columns, H, W, 3]
    return Image.fromarray(torch.cat([torch.cat(list(row), dim=1) for row in rows]).contiguous().numpy())
