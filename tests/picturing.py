"""Image files made byte by byte: what Pillow would not write."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, rows: int = 0) -> bytes:
    """An RGB PNG whose header says this size, with the data of some black rows and more chunks before it."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(rows * (1 + 3 * width) or 4), 1))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + png_chunk(b"IEND", b"")


def gray_tiff(values: np.ndarray, bits: int, white_is_zero: bool = False) -> bytes:
    """A TIFF of uint16 values ``[H, W]`` stored in 12 or 16 bits each."""
    height, width = values.shape
    data = values.astype("<u2").tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12) | pairs[:, 1]
        data = b"".join(int(pair).to_bytes(3, "big") for pair in packed)
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1}
    entries |= {273: 8, 277: 1, 278: height, 279: len(data)}
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + bytes(4)
