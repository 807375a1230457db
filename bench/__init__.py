"""Side-by-side measurements: what ``bitdance-edge bench`` needs. Scripts for developers are in ``studies/``.

The parent process (``runs``) measures nothing itself: each contender is a process (``child``, ``tasks``) with its own
threads and memory, asked in turn for one image.
"""
