"""Tokens from files and arrays are -1 and +1 of the right shape, or one error; nothing is allocated before."""

import io
import itertools
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from mutations import rewrite

from bitdance_edge.runtime import RequestError
from bitdance_edge.runtime.tokens import checked_tokens, holds_tokens, read_tokens

TOKENS = np.where(np.random.default_rng(0).random((2, 8, 4)) < 0.5, -1, 1).astype(np.int8)


def npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def with_header(descr: str, order: str, shape: str, data: bytes = bytes(64), version: int = 1) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


@pytest.mark.parametrize(
    "array",
    [
        TOKENS,
        TOKENS[0],
        np.asfortranarray(TOKENS),
        TOKENS.astype(np.float64),
        TOKENS.astype(">f2"),
        TOKENS.astype(np.int64),
        np.full((1, 2, 3), 1, np.uint16),
        np.zeros((0, 8, 4)),
    ],
)
def test_tokens_of_any_real_type_and_order_are_read(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", array)
    tokens = read_tokens(tmp_path / "tokens.npy")
    assert tokens.dtype == np.int8 and np.array_equal(tokens, array)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((TOKENS + 1) // 2, "they are 0 and 1, so give 2 [*] tokens - 1"),
        (TOKENS * 1e300, "values other than -1 and [+]1"),
        (TOKENS * np.nan, "values other than -1 and [+]1"),
        (TOKENS * np.inf, "values other than -1 and [+]1"),
        (np.full((8, 4), 0.9), "values other than -1 and [+]1"),
        (np.full((8, 4), -128, np.int8), "values other than -1 and [+]1"),
        (np.full((8, 4), 255, np.uint8), "values other than -1 and [+]1"),
        (TOKENS * (1 + 0j), "numbers"),
        (TOKENS.astype(str), "numbers"),
        (TOKENS > 0, "numbers"),
        (TOKENS[0, 0], r"\[K, C\] or \[B, K, C\]"),
        (TOKENS[None], r"\[K, C\] or \[B, K, C\]"),
        (np.int8(1), r"\[K, C\] or \[B, K, C\]"),
    ],
)
def test_other_values_are_refused(values: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", values)
    for read in (lambda: read_tokens(tmp_path / "tokens.npy"), lambda: checked_tokens("tokens", values)):
        with pytest.raises(RequestError, match=message):
            read()


@pytest.mark.parametrize(
    "values", [[[1, -1], [1]], [[1, None]], {"a": 1}, {1, -1}, "tokens", None, object(), iter([1])]
)
def test_what_is_no_array_is_refused(values: object) -> None:
    with pytest.raises(RequestError, match=r"give tokens|must be numbers"):
        checked_tokens("tokens", values)


def test_tokens_that_are_not_drawn_are_zero_as_a_whole() -> None:
    some = TOKENS.copy()
    some[:, 3:] = 0
    assert np.array_equal(checked_tokens("tokens", some, undrawn=True), some)
    with pytest.raises(RequestError, match="other than"):
        checked_tokens("tokens", some)
    with pytest.raises(RequestError, match="they are 0 and 1"):
        checked_tokens("tokens", (TOKENS + 1) // 2, undrawn=True)


DESCRS = (
    "'|i1'",
    "'<f8'",
    "'|O'",
    "'<U9'",
    "'<c16'",
    "[('a', '<f8')]",
    "'|V64'",
    "'|S1'",
    "7",
    "None",
    "'?'",
    "'<m8[s]'",
)
SHAPES = (
    *("(8, 8)", "(1, 8, 8)", "(64,)", "()", "(-8, -8)", "(0, 8)", f"({2**62},)", f"({2**62}, {2**62})", "(8.0, 8)"),
    *("'88'", "None", "(True, 64)", "(" * 90 + ")" * 90, f"({'9' * 5000},)", "[8, 8]", "(8, 8", "(8, 'x')"),
)


def test_headers_of_every_kind_are_read_or_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path, ones, refusals = tmp_path / "tokens.npy", np.ones(64, np.int8).tobytes(), 0
    tracemalloc.start()
    kinds = itertools.cycle(itertools.product(("False", "True", "3"), (1, 2, 3, 9, 1)))
    for (descr, shape), (order, version) in zip(itertools.product(DESCRS, SHAPES), kinds, strict=False):
        rewrite(path, with_header(descr, order, shape, ones, version))
        try:
            assert np.all(read_tokens(path) == 1)
        except RequestError as error:
            refusals += 1
            assert len(str(error)) < 500 + len(str(path))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert refusals > 200


def test_every_truncation_and_every_damaged_header_is_read_or_refused(tmp_path: Path) -> None:
    path, content, drawn = tmp_path / "tokens.npy", npy(TOKENS), np.random.default_rng(1)
    for end in range(len(content)):
        rewrite(path, content[:end])
        with pytest.raises(RequestError):
            read_tokens(path)
    for _ in range(300):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[drawn.integers(128, size=2)] = drawn.integers(256, size=2)
        rewrite(path, damaged.tobytes())
        try:
            assert set(np.unique(read_tokens(path))) <= {-1, 1}
        except RequestError as error:
            assert str(path) in str(error)


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens.npz", TOKENS)
    (tmp_path / "text.npy").write_text("-1 1 1", encoding="utf-8")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with (tmp_path / "header.npy").open("wb") as file:
        file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 10**8))
        file.truncate(10**8 + 12)
    for name, message in (
        ("tokens.npz", "is a .npz archive; save one array of tokens with numpy.save"),
        ("text.npy", "is not a .npy file"),
        ("objects.npy", "values of type object"),
        ("header.npy", "damaged header"),
        ("none.npy", "no tokens at"),
        (".", "is a folder"),
    ):
        with pytest.raises(RequestError, match=message):
            read_tokens(tmp_path / name)


def test_the_content_says_what_holds_tokens(tmp_path: Path) -> None:
    (tmp_path / "named.png").write_bytes(npy(TOKENS))
    assert holds_tokens(tmp_path / "named.png")
    assert holds_tokens(tmp_path / "missing.NPY")
    assert not holds_tokens(tmp_path / "missing.png")
