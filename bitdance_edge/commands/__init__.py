"""One module a command, named after it, with ``configure(parser)`` and ``run(args)``."""
