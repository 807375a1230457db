"""Side-by-side measurements. ``bitdance-edge bench`` is a room of modules; beside it stand scripts that run by themselves.

The parent process (``runs``) measures nothing itself: each contender is a child process (``worker``) with its own
threads and memory, asked in turn for one image.
"""
