"""Walks from nothing to an image, a program and a served page, as a new user would, with times: ``make walk`` runs it.

    python tests/walk_check.py WHEEL ARCHIVE.tar [--clone]

The walk has a new environment, the wheel and one ready bundle, and pip downloads what it installs. With ``--clone`` the
first of README's two commands follows, in a clone of this checkout. Prints the seconds of each step; fails where one
fails, or where the first image took more than a minute, or its site-packages (with pip's own) more than 210 MB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
MOST_SECONDS, MOST_MEGABYTES = 60.0, 210.0
sys.path.insert(0, str(ROOT / "tests" / "docs"))

from pages import blocks  # noqa: E402
from ready_server import wait_until_ready  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Walk from nothing to images, with times.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("archive", type=Path, help="a ready bundle of digits")
    parser.add_argument("--clone", action="store_true", help="walk README's first command too: minutes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        walk = Walk(Path(temporary))
        shutil.copy(args.archive, walk.folder)
        missed = walk.terminal(args.wheel.resolve(), args.archive.name)
        walk.program(args.archive.name)
        walk.page(args.wheel.resolve(), args.archive.name)
        if args.clone:
            walk.clone()
    if missed:
        raise SystemExit(missed)


class Walk:
    """One folder and its environment; nothing is taken from elsewhere but by pip."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.environment = folder / "environment"
        self.variables = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
            "PATH": f"{self.environment / SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "BITDANCE_EDGE_CACHE": str(self.cache),
            "PIP_NO_CACHE_DIR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def terminal(self, wheel: Path, archive: str) -> str:
        """An image in the terminal; returns what it took too much of, or ""."""
        started = time.monotonic()
        with step("a new environment"):
            subprocess.run([sys.executable, "-m", "venv", self.environment], check=True)
        with step("pip install WHEEL[cpu]"):
            self.run("pip", "install", "--quiet", f"{wheel}[cpu]")
        with step(f"bitdance-edge generate {archive} --classes 7 --seed 2 --out seven.png"):
            self.run("bitdance-edge", "generate", archive, "--classes", "7", "--seed", "2", "--out", "seven.png")
        seconds = time.monotonic() - started
        assert (self.folder / "seven.png").read_bytes().startswith(b"\x89PNG")
        assert not list(self.environment.rglob("site-packages/torch")), "PyTorch was installed"
        packages = megabytes(next(self.environment.rglob("site-packages")))
        bundle = megabytes(self.cache)
        say(f"first image: {seconds:.1f} s; site-packages {packages:.0f} MB; unpacked bundle {bundle:.0f} MB")
        missed = f"more than {MOST_SECONDS:.0f} s or {MOST_MEGABYTES:.0f} MB"
        return missed if seconds > MOST_SECONDS or packages > MOST_MEGABYTES else ""

    def program(self, archive: str) -> None:
        """An image in a product: the program of README, with the bundle that is here."""
        (code,) = (block.code for block in blocks(ROOT / "README.md") if block.language == "python")
        shown = code.replace("bundles/digits-4x", archive)
        assert shown != code, "the program of README opens another bundle"
        with step(f"README's program, {len(shown.splitlines())} lines"):
            self.run("python", "-c", shown)
        assert (self.folder / "seven.png").is_file() and (self.folder / "3-1.png").is_file()

    def page(self, wheel: Path, archive: str) -> None:
        """A served page, and an image from it."""
        with step("pip install WHEEL[cpu,serve]"):
            self.run("pip", "install", "--quiet", f"{wheel}[cpu,serve]")
        command = [self.program_path("bitdance-edge"), "serve", archive, "--port", "0", "--log-level", "error"]
        with subprocess.Popen(
            command, cwd=self.folder, env=self.variables, stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                with step(f"bitdance-edge serve {archive}, until the page is there"):
                    assert server.stdout is not None
                    address = server.stdout.readline().strip()
                    with urllib.request.urlopen(address, timeout=60) as page:
                        assert b"<html" in page.read()
                with step("until its worker is ready, and its first image"):
                    wait_until_ready(address)
                    body = json.dumps({"prompt": "7", "seed": 2}).encode()
                    asked = urllib.request.Request(f"{address}/v1/images/generations", body)
                    asked.add_header("Content-Type", "application/json")
                    with urllib.request.urlopen(asked, timeout=300) as answer:
                        assert json.load(answer)["data"][0]["b64_json"]
            finally:
                server.terminate()

    def clone(self) -> None:
        """README's first command, in a clone."""
        with step("git clone"):
            self.run("git", "clone", "--quiet", str(ROOT), "bitdance-edge")
        with step("make demo"):
            self.run("make", "--directory", "bitdance-edge", "demo", f"PYTHON={sys.executable}")
        demo = self.folder / "bitdance-edge" / "demo"
        assert sorted(path.name for path in demo.iterdir()) == ["digits.png", "shapes.png"]

    def run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.program_path(program), *arguments],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if done.returncode:
            raise SystemExit(f"{program} {' '.join(arguments)}\n{done.stdout}{done.stderr}")

    def program_path(self, program: str) -> str:
        """What the new environment runs when ``program`` is typed."""
        found = shutil.which(program, path=self.variables["PATH"])
        assert found is not None, f"{program} is not installed"
        return found


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print how long a step takes."""
    started = time.monotonic()
    yield
    say(f"{time.monotonic() - started:7.1f} s  {name}")


def megabytes(folder: Path) -> float:
    """The size of all files in a folder, in MB of 10^6 bytes; 0 where there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
