"""Where the members of a WebDataset shard are in its file, record by record."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bitdance_edge.runtime.bundle.tar_members import UNREADABLE, TarMember
from bitdance_edge.training.errors import TrainingError


class Span(NamedTuple):
    """The bytes of one member in its file."""

    offset: int
    bytes: int


def indexed_tar(file: Path) -> Iterator[tuple[str, dict[str, Span]]]:
    """Yield each record's name and its members by suffix, such as ``.jpg``; contents are not read.

    Raises:
        TrainingError: the file cannot be read, is compressed, truncated, or no tar.
    """
    try:
        with tarfile.open(file, "r:", tarinfo=TarMember) as tar:
            key, members = "", {}
            for member in tar:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile would keep them all
                folder, _, base = member.name.rpartition("/")
                stem, point, suffix = base.partition(".")
                if not member.isfile() or not point or not stem:
                    continue
                name = f"{folder}/{stem}" if folder else stem
                if name != key and members:
                    yield key, members
                    members = {}
                key = name
                members[f".{suffix.lower()}"] = Span(member.offset_data, member.size)
                if member.offset_data + member.size > file.stat().st_size:
                    raise TrainingError(f"{file} is truncated in {member.name}; copy it again")
            if members:
                yield key, members
    except (*UNREADABLE, OSError) as error:
        raise TrainingError(f"{file} is not a whole, uncompressed tar ({error}); copy or unpack it again") from None
