"""Where ``generate`` puts what it makes: each image once it is done; grid or tokens at the end, or of what there is."""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from bitdance_edge.commands.common import SUFFIXES, save_tokens
from bitdance_edge.commands.grid import image_label, labelled_grid
from bitdance_edge.runtime import GeneratedImage, RequestError, save_png
from bitdance_edge.runtime.bundle.files import cannot_write, claimed_output, require_replaceable

DEFAULT_FOLDER = Path("images")
FILES = (".png", ".npy", ".npz", ".json")  # suffixes of outputs that are one file
LABEL = 40  # characters of a file name that say what the image shows
TRIAL = 4096  # bytes written to find out that a disk is full: one block


class ImageOutputs:
    """Writes images and prints the path of each file that is complete.

    Args:
        folder: of one PNG an image, or the file of a single image; None: none is written.
        grid: file of one labelled picture of all images; None: none.
        tokens: ``.npy`` file of the tokens of all images; None: none.
        class_names: of the bundle, by id.
    """

    def __init__(self, folder: Path | None, grid: Path | None, tokens: Path | None, class_names: Sequence[str]) -> None:
        self.folder, self.grid, self.tokens, self.class_names = folder, grid, tokens, class_names
        self.done = 0
        self._kept: list[GeneratedImage] = []  # until grid or tokens are written

    def add(self, image: GeneratedImage) -> None:
        """Write an image; raises what ``GeneratedImage.save`` raises."""
        path = None
        if self.folder is not None:
            name = _file_name(image, self.class_names)
            path = self.folder if is_image_file(self.folder) else self.folder / name
            image.save(path)
        if self.grid is not None or self.tokens is not None:
            self._kept.append(image)
        self.done += 1
        if path is not None:
            print(path, flush=True)

    def finish(self) -> None:
        """Write the grid or the tokens of all images that were added, if there are any."""
        if not self._kept:
            return
        if self.tokens is not None:
            save_tokens(np.stack([image.tokens for image in self._kept]), self.tokens)
            print(self.tokens)
        if self.grid is not None:
            save_png(labelled_grid(self._kept, self.class_names), self.grid)
            print(self.grid)


def is_image_file(path: Path) -> bool:
    """Whether an output is the file of one image rather than a folder."""
    return path.suffix.lower() == ".png" and not path.is_dir()


def require_file(flag: str, path: Path | None, suffix: str) -> None:
    """Check that the file of a flag can be written, before the work starts; None passes.

    Raises:
        RequestError: it has another suffix, or is a folder.
        StorageError: its folder cannot be made or written, or it is a pipe or device.
    """
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise RequestError(f"{flag} {path} does not end in {suffix}, the format that is written")
    require_folder(flag, path.parent)
    if path.is_dir():
        raise RequestError(f"{flag} {path} is a folder; give the name of a file")
    require_replaceable(path)


def require_images(flag: str, path: Path | None) -> None:
    """Check where images go before the work starts: a folder, or a ``.png`` file for a single one. None passes.

    Raises:
        RequestError: it is the name of a picture of another format, or a file.
        StorageError: it cannot be made or written, or the disk is full.
    """
    if path is not None and is_image_file(path):
        require_file(flag, path, ".png")
        return
    if path is not None and path.suffix.lower() in SUFFIXES and not path.is_dir():
        raise RequestError(f"{flag} {path} is a name of another format than PNG: give a name in .png, or a folder")
    require_folder(flag, path)


def require_folder(flag: str, path: Path | None) -> None:
    """Check that files can be written into a folder, made if it is missing; leaves nothing behind. None passes.

    Raises:
        RequestError: it is a file.
        StorageError: it cannot be made or written, or the disk is full.
    """
    if path is None:
        return
    try:
        existing = path
        while not os.path.lexists(existing):
            existing = existing.parent
        if not existing.is_dir():
            raise RequestError(f"{flag} cannot write into {path}: {existing} is not a folder; choose another folder")
        for name in path.parts[len(existing.parts) :]:
            with suppress(FileNotFoundError):
                (existing / name).lstat()  # raises where the name is too long for this file system
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(TRIAL))
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def claimed_outputs(*paths: Path | None) -> Iterator[None]:
    """Keep other processes from writing these folders and files (``FILES``) while the block runs.

    None passes. Folders are made for that; those that nothing was written into are removed again.

    Raises:
        OutputBusyError: another process is writing one of them.
        StorageError: a folder cannot be made or written.
    """
    with ExitStack() as stack:
        for path in {path.absolute(): path for path in paths if path is not None}.values():
            folder = path.parent if path.suffix.lower() in FILES and not path.is_dir() else path
            stack.callback(_remove_empty, [each for each in (folder, *folder.parents) if not each.exists()])
            stack.enter_context(claimed_output(path, lock_in=folder))
        yield


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that hold nothing, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _file_name(image: GeneratedImage, class_names: Sequence[str]) -> str:
    """Number, what it shows and seed, in letters and digits that file names here can hold."""
    encoding = sys.getfilesystemencoding()
    label = image_label(image, class_names).encode(encoding, "replace").decode(encoding, "replace")
    safe = "".join(character if character.isalnum() else "_" for character in label)[:LABEL]
    return f"{image.index:04d}-{safe}-seed{image.seed}.png"
