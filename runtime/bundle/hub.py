"""Names on the Hub: ``OWNER/NAME`` to files on this machine, and a bundle to a repository there.

Uses huggingface_hub (https://huggingface.co/docs/huggingface_hub), which keeps what it downloads in its cache, goes on
with a download that was interrupted, and shows its progress. Nothing else in the runtime opens a connection.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.errors import BitDanceError
from bitdance_edge.runtime.bundle.manifest import MANIFEST, Bundle
from bitdance_edge.runtime.errors import HubError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
NOT_NEEDED = re.compile(r"\.gitattributes|.*\.(png|jpe?g|gif|webp|svg|mp4)", re.IGNORECASE)
# Which of a repository's files are needed; raises HubError where it holds none.
Selection = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class Downloaded:
    """Files of a repository: the folder that they are in, and the commit that they are of."""

    folder: Path
    repository: str
    revision: str


def is_hub_name(name: str | Path) -> bool:
    """Whether a name is not of something here, nor in a folder that is here, and has the form ``OWNER/NAME``."""
    text = str(name)
    return NAME.fullmatch(text) is not None and not Path(text).exists() and not Path(text).parent.is_dir()


def require_hub_name(repository: str) -> None:
    """Raise HubError where a repository has no name of the form ``OWNER/NAME``."""
    if NAME.fullmatch(repository) is None:
        raise HubError(f"{repository!r} is not the name of a repository; write OWNER/NAME")


def bundle_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a bundle given by its path, or by its name on the Hub, from where it is downloaded if need be.

    Raises:
        HubError: it cannot be downloaded, or is not a bundle.
    """
    if not is_hub_name(name):
        return Path(name)
    return download(str(name), revision, bundle_files, []).folder


def bundle_files(files: Sequence[str]) -> list[str]:
    """Of a repository's files those of a bundle: all but pictures of its card."""
    if MANIFEST not in files:
        raise HubError(
            f"it holds no bundle (no {MANIFEST}); a checkpoint becomes one by: bitdance-edge export OWNER/NAME"
        )
    return [file for file in files if not NOT_NEEDED.fullmatch(file)]


def download(repository: str, revision: str | None, select: Selection, usual: Sequence[str]) -> Downloaded:
    """Download the files of a repository that are needed, or find them in the cache.

    Args:
        revision: branch, tag or commit; None: the main branch. It is resolved to a commit before anything is loaded.
        usual: what is needed of such a repository as far as its name tells, for the command in errors; [] for all.

    Raises:
        HubError: huggingface_hub is not installed, the Hub cannot be reached and the cache lacks the files, or the
            repository does not exist, is not open to this user, or does not hold what is needed.
    """
    by_hand = _download_command(repository, revision, usual)
    library = _library(f"{repository} is not a folder here; to have it downloaded", by_hand)
    endpoint = os.environ.get("HF_ENDPOINT")
    with _explained(repository, by_hand):
        try:
            found = library.HfApi(endpoint=endpoint).model_info(repository, revision=revision)
        except Exception as error:  # what it raises for a lost connection depends on the HTTP library that it uses
            if isinstance(error, _answers()):
                raise
            names = [entry.path for entry in library.get_cached_repo_tree(repository, revision=revision)]
            return _snapshot(library, repository, revision, select(names), local_files_only=True)
        names = [file.rfilename for file in found.siblings or ()]
        return _snapshot(library, repository, revision, select(names), endpoint=endpoint)


def _snapshot(library: Any, repository: str, revision: str | None, names: Sequence[str], **how: Any) -> Downloaded:
    """The files of these names, at the commit that the revision is now; its folder is named after the commit."""
    patterns = [_literal(name) for name in names]
    folder = Path(library.snapshot_download(repository, revision=revision, allow_patterns=patterns, **how))
    return Downloaded(folder, repository, folder.name)


def upload(bundle: Bundle, repository: str, card: str, *, private: bool = False) -> str:
    """Put a bundle with its card into a repository, which is made if there is none, in one commit; returns its address.

    The files are those that ``pack`` takes; each is checked against the manifest before.

    Raises:
        HubError: huggingface_hub is not installed, nobody is logged in, or the Hub refuses.
        BundleError: a file is missing or altered.
    """
    from bitdance_edge.runtime.bundle.pack import bundle_paths

    require_hub_name(repository)
    command = f"hf upload {repository} {shlex.quote(str(bundle.folder))} ."
    library = _library(f"to upload {bundle.folder}", command)
    paths = bundle_paths(bundle)
    operations = [library.CommitOperationAdd(path, str(bundle.folder / path)) for path in paths]
    operations.append(library.CommitOperationAdd("README.md", card.encode()))
    with _explained(repository, command):
        api = library.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.create_commit(repository, operations, commit_message=f"{bundle.name}").commit_url)


def _library(purpose: str, command: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(f"{purpose}: pip install 'bitdance-edge[hub]', or fetch it with any tool: {command}") from None
    return huggingface_hub


def _answers() -> tuple[type[Exception], ...]:
    """The errors that mean: the Hub can be reached, and says no."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return HfHubHTTPError, HFValidationError


@contextmanager
def _explained(repository: str, command: str) -> Iterator[None]:
    """Make one clear error of what the library raises."""
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        yield
    except HubError as error:
        raise HubError(f"{repository}: {error.args[0]}") from None
    except BitDanceError:
        raise
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        raise HubError(
            f"{repository} is not here, and the Hub cannot be reached; fetch it where it can: {command}"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise HubError(f"{repository}: {reason}; by hand it is: {command}") from None


def _download_command(repository: str, revision: str | None, files: Sequence[str]) -> str:
    """The line of the Hub's own program that fetches the same into ``models/``."""
    folder = "models" if files else f"models/{repository.partition('/')[2]}"
    pinned = ["--revision", revision] if revision else []
    return shlex.join(["hf", "download", repository, *files, *pinned, "--local-dir", folder])


def _literal(name: str) -> str:
    """A file's name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
