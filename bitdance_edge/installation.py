"""How this installation is called and extended: commands in messages are shown as they work from where the user is."""

import os
import re
import shutil
import sys
import sysconfig
from functools import cache
from pathlib import Path

NAME = "bitdance-edge"
# In messages, commands are written as for a package from the index whose scripts are on the PATH.
PIP = re.compile(rf"(?<!-m )\bpip install (?P<others>(?:[\w.=-]+ )*)'{NAME}\[(?P<extras>[\w,-]+)\]'")
COMMAND = re.compile(rf"(?<![\w./'-]){NAME} (?=[a-z]+\b)(?!\w+:)")


def as_typed(text: str) -> str:
    """Rewrite the commands in a message so that they work from the current folder.

    ``bitdance-edge ...`` becomes the path of this environment's script where the PATH does not lead to it, and
    ``pip install 'bitdance-edge[...]'`` installs from the folder or file that this package was installed from.
    """
    text = PIP.sub(lambda found: f"{_pip()} install {found['others']}'{_source()}[{found['extras']}]'", text)
    return COMMAND.sub(f"{_program()} ", text)


def _program() -> str:
    if _is_on_path(NAME):
        return NAME
    script = _scripts() / NAME
    return _shown(script) if script.exists() else f"{_shown(Path(sys.executable))} -m bitdance_edge"


def _pip() -> str:
    return "pip" if _is_on_path("pip") else f"{_shown(Path(sys.executable))} -m pip"


def _scripts() -> Path:
    return Path(sysconfig.get_path("scripts"))


def _is_on_path(program: str) -> bool:
    """Whether typing ``program`` runs that of this environment, or of the user's own packages for it."""
    found = shutil.which(program)
    user = sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))
    return found is not None and Path(found).parent in (_scripts(), Path(user))


def _shown(path: Path) -> str:
    """A path as short as it can be typed from the current folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return str(path)
    if path == here:
        return "."
    return os.path.join(".", path.relative_to(here)) if path.is_relative_to(here) else str(path)  # noqa: PTH118


def _source() -> str:
    """What pip installs this package from: a folder or file that is still there (PEP 610), or the index."""
    path = _installed_from()
    return NAME if path is None or not path.exists() else _shown(path)


@cache
def _installed_from() -> Path | None:
    import json  # these cost every start of a program more than all else in this file, and only errors need them
    from importlib import metadata
    from urllib.parse import urlparse
    from urllib.request import url2pathname

    try:
        record = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from a folder on sys.path
        return None
    url = urlparse(json.loads(record)["url"]) if record else None
    return Path(url2pathname(url.path)) if url is not None and url.scheme == "file" else None
