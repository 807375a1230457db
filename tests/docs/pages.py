"""What the pages show: their blocks of code and their links.

A block of ``bash`` or ``python`` is run, one of ``console`` needs what a test machine lacks (a GPU, a connection, a
checkpoint of 32 GB), so that its commands are only parsed, and one of ``text`` is neither.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"""\]\(([^)\s]+)(?:\s+"[^"]*")?\)""")
DEFINITION = re.compile(r"^\[([^\]]+)\]: (\S+)$", re.MULTILINE)
REFERENCE = re.compile(r"\[([^\[\]]+)\]\[([^\[\]]*)\]")  # [text][name], or [name][]
CODE = re.compile(r"`[^`\n]+`")
HEADING = re.compile(r"^#{1,4} (.+)$", re.MULTILINE)
LANGUAGES = (
    "bash",
    "python",
    "console",
    "text",
    "toml",
    "json",
    "cpp",
    "{toctree}",
    "{figure}",
    "{include}",
    "{eval-rst}",
)


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    code: str

    def commands(self) -> Iterator[str]:
        """The lines of a shell block, each with what continues it."""
        for line in re.sub(r"\\\n\s*", " ", self.code).splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield line


def pages() -> list[Path]:
    """README, the documentation and the pages beside them; not reports, which commands wrote."""
    docs = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts and path.name != "report.md"]
    beside = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    return sorted([*beside, *docs, ROOT / "checkpoints" / "README.md", *(ROOT / "integrations").rglob("*.md")])


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page."""
    return [Block(page, language, code) for language, code in BLOCK.findall(page.read_text(encoding="utf-8"))]


def anchors(page: Path) -> set[str]:
    """What a link may have behind ``#``: headings as GitHub and MyST write them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures, written in place or defined at its end."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [*LINK.findall(text), *(target for _, target in DEFINITION.findall(text))]


def undefined_and_unused(page: Path) -> tuple[set[str], set[str]]:
    """The names by which a page refers to no link, and the links that it defines and nothing refers to."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    defined = {name.lower() for name, _ in DEFINITION.findall(text)}
    used = {(name or shown).lower() for shown, name in REFERENCE.findall(CODE.sub("", text))}
    return used - defined, defined - used


def shown_lines(page: Path) -> int:
    """The number of lines of a page that its reader sees: definitions of links are not shown."""
    return len(DEFINITION.sub("", page.read_text(encoding="utf-8")).rstrip().splitlines())
