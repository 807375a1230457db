"""``python -m bitdance_edge``: the command line."""

from bitdance_edge.cli import main

raise SystemExit(main())
