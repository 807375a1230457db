"""A job that is made once a test run, without any engine."""

from pathlib import Path

import pytest
from bulking import made, small_plan
from sharing import made_once, run_folder

from bitdance_edge.runtime import Bundle
from bitdance_edge.scale.plan import Plan


@pytest.fixture(scope="session")
def job(bundle: Bundle) -> Plan:
    return small_plan(bundle.folder)


@pytest.fixture(scope="session")
def whole(job: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the job, made in this process; not to be changed."""
    return made_once(run_folder(tmp_path_factory) / "job", lambda folder: made(job, folder))
