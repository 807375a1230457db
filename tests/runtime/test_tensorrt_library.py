"""One logger a process, and a record of its own for each user."""

import sys
from types import SimpleNamespace

import pytest

from bitdance_edge.runtime.backends.tensorrt_library import Library, load_library


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = (
        SimpleNamespace(name=name) for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
    )


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(ILogger=ILogger))
    return load_library.__wrapped__("tensorrt")


def test_a_recording_has_what_was_said_while_it_was_open(library: Library) -> None:
    library.logger.log(ILogger.ERROR, "before")
    with library.recording() as outer:
        library.logger.log(ILogger.WARNING, "first")
        library.logger.log(ILogger.VERBOSE, "a detail")
        with library.recording() as inner:
            library.logger.log(ILogger.ERROR, "second")
        library.logger.log(ILogger.INFO, "third")
    library.logger.log(ILogger.ERROR, "after")
    assert outer == ["WARNING: first", "ERROR: second", "INFO: third"]
    assert inner == ["ERROR: second"]


def test_a_recording_ends_with_an_exception(library: Library) -> None:
    with pytest.raises(KeyError), library.recording() as lines:
        raise KeyError
    library.logger.log(ILogger.ERROR, "after")
    assert not lines
