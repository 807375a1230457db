"""``python -m bitdance_edge``: the command line, interruptible from its first import on."""

from bitdance_edge.interrupts import run_program


def main() -> int:
    """Entry point of the program ``bitdance-edge``; the exit status, as ``cli.main`` gives it."""

    def work() -> int:
        from bitdance_edge.cli import main
        from bitdance_edge.streams import flushed, open_closed

        open_closed()
        return flushed("bitdance-edge", main())

    return run_program("bitdance-edge", work)


if __name__ == "__main__":
    raise SystemExit(main())
