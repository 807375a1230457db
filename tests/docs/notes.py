"""Prints the notes of this version from a changelog: ``notes.py CHANGELOG.md``; refuses one that does not have them."""

import sys
from pathlib import Path

from bitdance_edge import __version__


def notes(changelog: str, version: str) -> str:
    """The section of a version, without its heading."""
    found = [part for part in changelog.split("\n## ")[1:] if part.partition("\n")[0].split()[0] == version]
    if len(found) != 1:
        raise SystemExit(f"the changelog has {len(found)} sections named {version}; write one")
    return found[0].partition("\n")[2].strip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(notes(Path(sys.argv[1]).read_text(encoding="utf-8"), __version__))
