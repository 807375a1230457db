"""Bundles of the small random models, exported once a test run, and which tests share a process."""

import os
import shutil
import signal
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cores  # first
import pytest
from bench_fixtures import altered as altered
from bench_fixtures import compared as compared
from calibration_fixtures import calibrated as calibrated
from calibration_fixtures import recordings as recordings
from cuda_fixtures import on_cuda as on_cuda
from cuda_fixtures import trace as trace
from engine_fixtures import built as built
from engine_fixtures import built_copy as built_copy
from engine_fixtures import digits as digits
from engine_fixtures import library as library
from gpu_fixtures import gpus as gpus
from linking import linked_bf16 as linked_bf16
from linking import linked_bundle as linked_bundle
from page_fixtures import browser as browser
from page_fixtures import open_page as open_page
from places import FIXTURES
from ray_fixtures import connected as connected
from ray_fixtures import ray_cluster as ray_cluster
from refusing import cheap as cheap
from scale_fixtures import job as job
from scale_fixtures import whole as whole
from serve_fixtures import attacked as attacked
from serve_fixtures import digits_bundle as digits_bundle
from serve_fixtures import guarded_server as guarded_server
from serve_fixtures import pool as pool
from serve_fixtures import reference as reference
from serve_fixtures import serve as serve
from serve_fixtures import server as server
from serve_fixtures import small_server as small_server
from serve_fixtures import text_server as text_server
from sharing import made_once, run_folder
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.manifest import file_spec

# Folders whose tests share what takes long to make: calibrations and engines.
ONE_PROCESS = ("calibration", "engines")

# As in an activated environment, so that messages say "bitdance-edge", not its path.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])

# onnxruntime-gpu over a CUDA that computes nothing: ``make test-cuda`` sets both up and runs them.
collect_ignore = [] if "FAKE_CUDA_TRACE" in os.environ else ["cuda"]

if cores.SHARED:
    cores.one_thread_a_graph()


class ByFile(LoadScopeScheduling):
    """Tests of a file run in one process, which makes the file's fixtures once; so do those of some folders."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        folder = Path(file).parts[1]
        return folder if folder in ONE_PROCESS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C reaches the commands that tests start, also where a shell runs the tests in the background.

    Such a shell has them ignore it, which their children would inherit; a handler of one's own is not inherited.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """``exported("cc_1x", opset=24, precision="fp32")`` gives the bundle of a fixture model."""
    from bitdance_edge.export.exporter import ExportOptions
    from bitdance_edge.export.opening import OpenedCheckpoint, open_text_to_image
    from bitdance_edge.model import load_generator

    folder, made = run_folder(tmp_path_factory) / "bundles", {}

    def opened(fixture: str, options: ExportOptions) -> OpenedCheckpoint:
        if fixture.startswith("t2i"):
            return open_text_to_image(FIXTURES / fixture, options, sizes="192x128,64x64", max_prompt=96)
        model = load_generator(FIXTURES / fixture / "state.safetensors")
        return OpenedCheckpoint(model=model, options=options, provenance={"checkpoint": fixture})

    def export(fixture: str, opset: int = 24, precision: str = "fp32") -> Bundle:
        key = f"{fixture}-{opset}-{precision}"
        if key not in made:
            options = ExportOptions(name=key, opset=opset, precision=precision, window_patches=0)
            made[key] = Bundle.open(made_once(folder / key, lambda target: opened(fixture, options).export(target)))
        return made[key]

    return export


@pytest.fixture(scope="session")
def bundle(exported: Callable[..., Bundle]) -> Bundle:
    """A bundle of 4 tokens a step, for tests where any would do."""
    return exported("cc_4x_patch")


@pytest.fixture(scope="session")
def word_bundle(exported: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A text-to-image bundle that knows the words of "a red fish" only."""
    from bitdance_edge.training.vocabulary import word_tokenizer

    source, folder = exported("t2i_16x_swiglu"), tmp_path_factory.mktemp("words") / "words"
    shutil.copytree(source.folder, folder)
    assert source.text is not None
    path = folder / source.text.tokenizer.path
    tokenizer = word_tokenizer(["a red fish"], 16, [4])
    largest = max(token for ids in source.text.suffixes.values() for token in ids)  # which the bundle still names
    tokenizer.add_special_tokens([f"<|unused_{i}|>" for i in range(tokenizer.get_vocab_size(), largest + 1)])
    tokenizer.save(str(path))
    text = replace(source.text, tokenizer=file_spec(folder, path), example="a red fish")
    replace(source, folder=folder, text=text).write()
    return Bundle.open(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", action="store_true", help="write the page's screenshots into docs/")
