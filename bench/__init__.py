"""Side-by-side measurements: the modules of ``bitdance-edge bench``, and beside them scripts that run by themselves.

The parent process (``runs``) measures nothing itself: each contender is a child process (``worker``) with its own
threads and memory, asked in turn for one image.
"""
