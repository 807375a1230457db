"""Runs what the pages show, as it stands there: ``run_pages.py [PAGE...]``, or ``make snippets`` for all.

Each page has a folder of its own that looks like a clone. ``pip``, ``git``, ``make`` and ``hf`` are replaced by
programs that do nothing, because what they would install is installed; ``test_pages.py`` checks what they are given.
What docs/get-started.md exports is there for the pages that do not export it themselves.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from pages import ROOT, Block, blocks, pages

REPLACED = ("pip", "git", "make", "hf")
CLONE = ("checkpoints", "examples", "docs", "bench", "integrations", "tests")
MOVE = re.compile(r"^cd (\S+)$", re.MULTILINE)  # which the blocks after it follow too
SERVER = "http://127.0.0.1:8000/health"


def main(names: list[str]) -> int:
    """Run the pages that are named, or all; returns the number that failed."""
    wanted = [ROOT / name for name in names] or pages()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        made = shipped_bundle(Path(temporary) / "made")
        for page in wanted:
            shown = [block for block in blocks(page) if block.language in ("bash", "python")]
            if shown:
                started = time.monotonic()
                status = run_page(page, shown, Path(temporary), made)
                failed += status
                say(f"{'FAILED' if status else 'ok'}  {page.relative_to(ROOT)}  {time.monotonic() - started:.0f} s")
    return failed


def run_page(page: Path, shown: list[Block], temporary: Path, made: Path) -> int:
    """Run the blocks of a page in order; returns 1 where one failed."""
    folder = temporary / page.relative_to(ROOT).as_posix().replace("/", "-")
    (folder / "bitdance-edge").mkdir(parents=True)
    for place in (folder, folder / "bitdance-edge"):  # a page may say: cd bitdance-edge
        for name in CLONE:
            (place / name).symlink_to(ROOT / name)
        if f"-o bundles/{made.name}\n" not in page.read_text(encoding="utf-8"):
            shutil.copytree(made, place / "bundles" / made.name)
    environment = {
        **os.environ,
        "PATH": f"{replacements(temporary)}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
    }
    servers: list[subprocess.Popen] = []
    where = folder
    try:
        for block in shown:
            command = [sys.executable, "-c", block.code]
            if block.language == "bash":
                served, code = split_server(block)
                if served:
                    servers.append(subprocess.Popen(["bash", "-c", f"exec {served}"], cwd=where, env=environment))
                    wait_for_server(servers[-1])
                command = ["bash", "-euo", "pipefail", "-c", code]
            done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
            if done.returncode:
                say(f"{block.code}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
                return 1
            where = where.joinpath(*MOVE.findall(block.code))
    finally:
        for server in servers:
            server.terminate()
            server.wait(timeout=60)
    return 0


def shipped_bundle(folder: Path) -> Path:
    """Export the bundle that most pages use."""
    bundle = folder / "digits-4x"
    subprocess.run(["bitdance-edge", "export", ROOT / "checkpoints" / bundle.name, "-o", bundle, "--quiet"], check=True)
    return bundle


def split_server(block: Block) -> tuple[str, str]:
    """The command of a block that serves, and the others."""
    served = [line for line in block.commands() if line.startswith("bitdance-edge serve ")]
    others = [line for line in block.code.splitlines() if not line.startswith("bitdance-edge serve ")]
    return (served[0] if served else ""), "\n".join(others)


def wait_for_server(server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(SERVER, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("the server of a page did not come up")


def replacements(temporary: Path) -> Path:
    """A folder of programs that install and download nothing."""
    folder = temporary / "replaced"
    if not folder.exists():
        folder.mkdir()
        for name in REPLACED:
            (folder / name).write_text("#!/bin/sh\nexit 0\n")
            (folder / name).chmod(0o755)
    return folder


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    assert shutil.which("bitdance-edge"), "bitdance-edge is not on the PATH: activate the environment"
    raise SystemExit(main(sys.argv[1:]))
