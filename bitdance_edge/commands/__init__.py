"""The commands that need no more than the runtime."""
