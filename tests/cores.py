"""One core for each process where pytest-xdist shares them: to be imported before numpy and torch, which read how many.

Two threads each of two processes wait for each other on two cores, most of the time spinning.
"""

import os

SHARED = "PYTEST_XDIST_WORKER" in os.environ

if SHARED:
    os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that a test starts


def one_thread_a_graph() -> None:
    """Let sessions of ONNX Runtime, which knows no such variable, have one thread where they ask for one a core."""
    import onnxruntime

    asked = onnxruntime.SessionOptions.intra_op_num_threads
    one = property(asked.fget, lambda options, number: asked.fset(options, number or 1))
    onnxruntime.SessionOptions.intra_op_num_threads = one
