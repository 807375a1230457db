"""The command line in this process."""

from bitdance_edge.cli import main

EXPORTED_ONLY = ("--no-fast-previews", "--window-patches", "0")  # what export draws and measures besides takes seconds


def status_of(*arguments: object) -> int:
    """Run a command; its exit status, also where its arguments cannot be parsed."""
    try:
        return main([*map(str, arguments)])
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
