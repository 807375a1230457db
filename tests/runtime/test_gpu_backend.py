"""The GPU backend's orchestration over a GPU that is not there: addresses, order, aliasing and freeing.

See ``fake_gpu`` for what this cannot show.
"""

import gc
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from gpu_fixtures import MAX_IMAGES, TARGET, TEXT, Gpus

from bitdance_edge.runtime import (
    BackendError,
    BuildError,
    Bundle,
    Cancelled,
    GeneratedImage,
    ImageDone,
    OutOfMemoryError,
    PatchDone,
    Pipeline,
    Preview,
    Request,
    RequestError,
)
from bitdance_edge.runtime.backends.tensorrt import TensorRTBackend
from bitdance_edge.runtime.bundle.specs import WindowSpec
from bitdance_edge.runtime.bundle.stage_names import StageName

STEPS = 3
NOTHING = dict.fromkeys(("memory", "graphs", "contexts", "primary context", "pinned", "streams", "events", "lost"), 0)
REQUEST = Request(classes=[3, 7], seed=5, steps=STEPS)


def on_cpu(bundle: Bundle, request: Request) -> list[GeneratedImage]:
    with Pipeline.open(bundle.folder, device="cpu") as pipeline:
        return pipeline.generate(request)


def same(found: list[GeneratedImage], wanted: list[GeneratedImage]) -> bool:
    return all(
        np.array_equal(one.tokens, other.tokens) and one.to_pil() == other.to_pil()
        for one, other in zip(found, wanted, strict=True)
    )


def backend_of(pipeline: Pipeline) -> TensorRTBackend:
    assert isinstance(pipeline.backend, TensorRTBackend)
    return pipeline.backend


@pytest.mark.parametrize("fixture", ["cc_1x", "cc_4x_patch"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_are_those_of_the_cpu(gpus: Gpus, fixture: str, guidance: float) -> None:
    gpu = gpus(fixture)
    request = Request(classes=[3, 7], count=2, seed=5, steps=STEPS, guidance=guidance)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        assert pipeline.choice.backend == "tensorrt"
        found = pipeline.generate(request)
    assert same(found, on_cpu(gpu.bundle, request))
    assert gpu.alive == NOTHING


def test_images_decoded_in_parts_of_unequal_size_are_those_of_the_cpu(gpus: Gpus) -> None:
    """The buffers of the first parts are gone when their pixels are taken."""
    gpu = gpus("cc_4x_patch", max_images=8)
    with Pipeline.open(gpu.bundle.folder, device="cpu") as pipeline:
        images = pipeline.generate(Request(classes=[3], count=5, seed=5, steps=STEPS))
    tokens, seeds = np.stack([image.tokens for image in images]), [image.seed for image in images]
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        with pipeline.backend.current():
            pipeline.loaded.image_stage(StageName.DECODER).at_once = 2
        found = pipeline.decode(tokens, seeds=seeds)
    np.testing.assert_array_equal(found, np.stack([np.asarray(image.to_pil()) for image in images]))
    assert gpu.alive == NOTHING


def test_a_patch_is_one_launch_over_buffers_that_do_not_move(gpus: Gpus) -> None:
    gpu = gpus()
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        patches = gpu.bundle.model.default_size.patches
        calls, addresses = [], []
        for event in pipeline.stream(Request(classes=[3], seed=5, steps=STEPS, output="tokens")):
            if isinstance(event, PatchDone):
                calls.append(backend_of(pipeline).calls)
                addresses.append(set(gpu.memory))
        # Two patches are under way when the first is seen: the prompt's, and one launch by launch for the setting-up.
        assert [after - before for before, after in pairwise(calls)] == [1] * (patches - 2) + [0]
        assert all(found == addresses[1] for found in addresses[1:])
        assert gpu.log.count("graph") == patches - 2


def test_the_next_patch_is_asked_for_before_the_last_is_waited_for(gpus: Gpus) -> None:
    """And its noise is on its way while the one before runs: nothing on the host stands between two patches."""
    gpu = gpus()
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        events = pipeline.stream(Request(classes=[3], seed=5, steps=STEPS, output="tokens"))
        for _ in range(5):
            next(events)
        gpu.log.clear()
        next(events)
        events.close()  # type: ignore[attr-defined]
    asked = gpu.log[: gpu.log.index("synchronize")]
    assert asked.index("upload") < asked.index("graph") < asked.index("download")


def test_another_request_of_the_same_size_finds_everything_in_place(gpus: Gpus) -> None:
    gpu = gpus()
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        pipeline.generate(REQUEST)
        before, contexts = set(gpu.memory), gpu.contexts
        gpu.log.clear()
        again = pipeline.generate(Request(classes=[1, 2], seed=9, steps=STEPS, guidance=2.0))
        assert set(gpu.memory) == before
        assert gpu.contexts == contexts
        assert gpu.log.count("graph") == gpu.bundle.model.default_size.patches - 1
    assert same(again, on_cpu(gpu.bundle, Request(classes=[1, 2], seed=9, steps=STEPS, guidance=2.0)))


def test_a_larger_request_moves_the_arena_and_graphs_follow(gpus: Gpus) -> None:
    gpu = gpus()
    small, large = Request(classes=[3], seed=5, steps=STEPS), Request(classes=[1, 2, 3], seed=8, steps=STEPS)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        events = pipeline.stream(small)
        first = [next(events) for _ in range(5)]
        middle = pipeline.generate(large)
        rest = [*first, *events]
    assert same([event.image for event in rest if isinstance(event, ImageDone)], on_cpu(gpu.bundle, small))
    assert same(middle, on_cpu(gpu.bundle, large))
    assert gpu.alive == NOTHING


def test_prefixes_and_previews(gpus: Gpus) -> None:
    gpu = gpus()
    prefix = on_cpu(gpu.bundle, REQUEST)[0].tokens[:20]
    request = Request(classes=[4], seed=2, steps=STEPS, prefix=prefix, preview_every=5)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        events = list(pipeline.stream(request))
    with Pipeline.open(gpu.bundle.folder, device="cpu") as pipeline:
        wanted = list(pipeline.stream(request))
    for kind in (PatchDone, Preview, ImageDone):
        assert len([e for e in events if isinstance(e, kind)]) == len([e for e in wanted if isinstance(e, kind)])
    previews = [[e.pixels for e in each if isinstance(e, Preview)] for each in (events, wanted)]
    assert all(np.array_equal(one, other) for one, other in zip(*previews, strict=True))
    assert same(
        [e.image for e in events if isinstance(e, ImageDone)], [e.image for e in wanted if isinstance(e, ImageDone)]
    )


def test_decoding_waits_for_no_patch_and_no_patch_for_it(gpus: Gpus) -> None:
    gpu = gpus()
    request = Request(classes=[1, 2], seed=3, steps=STEPS)
    with Pipeline.open(gpu.bundle.folder, max_batch=1) as pipeline:
        events = list(pipeline.stream(request))
        decoding = pipeline.loaded.image_stage(StageName.DECODER).backend
        assert isinstance(decoding, TensorRTBackend)
        assert backend_of(pipeline).lane.stream is not decoding.lane.stream
    first_image = next(i for i, event in enumerate(events) if isinstance(event, ImageDone))
    second_batch = next(i for i, e in enumerate(events) if isinstance(e, PatchDone) and e.first_image == 1)
    assert second_batch < first_image  # of the fake, whose decoder finishes only when it is waited for
    assert same([e.image for e in events if isinstance(e, ImageDone)], on_cpu(gpu.bundle, request))


@pytest.mark.parametrize("fault", ["no cuda-bindings", "not capturable", "capture fails"])
def test_without_graphs_the_same_launches_run_and_it_is_said_once(
    gpus: Gpus, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = gpus()
    if fault == "no cuda-bindings":
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    elif fault == "not capturable":
        monkeypatch.setattr("fake_tensorrt.ExecutionContext.is_stream_capturable", lambda self, handle: False)
    else:
        failed = type("Status", (), {"name": "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"})()
        end = gpu.bindings.cuStreamEndCapture

        def spoilt(handle: int) -> tuple:
            gpu.bindings.cuGraphDestroy(end(handle)[1])
            return failed, None

        monkeypatch.setattr(gpu.bindings, "cuStreamEndCapture", spoilt)
    with caplog.at_level(logging.WARNING), Pipeline.open(gpu.bundle.folder) as pipeline:
        found = pipeline.generate(REQUEST) + pipeline.generate(REQUEST)
        assert backend_of(pipeline).eager
    assert len([record for record in caplog.records if "not as one CUDA graph" in record.message]) == 1
    assert same(found[:2], on_cpu(gpu.bundle, REQUEST))
    assert same(found[2:], found[:2])
    assert "graph" not in gpu.log
    assert gpu.alive == NOTHING


@pytest.mark.parametrize("fixture", ["cc_1x", "cc_4x_patch"])
def test_engines_that_do_not_update_in_place_get_a_second_cache(gpus: Gpus, fixture: str) -> None:
    gpu = gpus(fixture, 20, aliases=False)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        found = pipeline.generate(REQUEST)
    assert same(found, on_cpu(gpu.bundle, REQUEST))
    assert gpu.alive == NOTHING


def test_a_cache_in_two_places_is_refused(gpus: Gpus) -> None:
    gpu = gpus()
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        backend = backend_of(pipeline)
        with backend.current():
            spec, sizes = gpu.bundle.stage("backbone"), {"R": 2, "T": 4}
            tensors = (*spec.inputs, *spec.outputs)
            buffers = {tensor.name: backend.empty(tensor.sized(sizes), tensor.dtype) for tensor in tensors}
            with pytest.raises(BuildError, match=r"updates past_key_values\.0\.key in place, but present\.0\.key"):
                backend.load("backbone").bind(buffers)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", ["cancelled", "closed", "interrupted", "failed", "forgotten"])
def test_whatever_ends_it_everything_is_given_back(gpus: Gpus, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = gpus()
    pipeline, cancel = Pipeline.open(gpu.bundle.folder), threading.Event()
    events = pipeline.stream(REQUEST, cancel)
    for _ in range(4):
        next(events)
    assert gpu.alive["graphs"] == 1
    if end == "cancelled":
        cancel.set()
        with pytest.raises(Cancelled, match="after 4 of 16"), pipeline:
            list(events)
    elif end == "closed":
        pipeline.close()
        pipeline.close()
        with pytest.raises(BackendError, match="the pipeline is closed"):
            next(events)
    elif end == "interrupted":
        monkeypatch.setattr(gpu.bindings, "cuGraphLaunch", interrupt)
        with pytest.raises(KeyboardInterrupt), pipeline:
            list(events)
    elif end == "failed":
        failed = type("Status", (), {"name": "CUDA_ERROR_ILLEGAL_ADDRESS"})()
        monkeypatch.setattr(gpu.bindings, "cuGraphLaunch", lambda *_: (failed,))
        with pytest.raises(BackendError, match="cuGraphLaunch gave CUDA_ERROR_ILLEGAL_ADDRESS"), pipeline:
            list(events)
    del pipeline, events
    gc.collect()
    assert gpu.alive == NOTHING


def test_an_allocation_that_fails_gives_back_what_came_before(gpus: Gpus) -> None:
    gpu = gpus()
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        pipeline.generate(Request(classes=[3], seed=5, steps=STEPS))
        gpu.size = sum(block.nbytes for block in gpu.memory.values()) + 1000
        with pytest.raises(
            OutOfMemoryError, match=r"MB free, and .* MB more are needed: generate fewer images at once"
        ):
            pipeline.generate(Request(classes=[1, 2, 3], seed=5, steps=STEPS))
        gpu.size = 10**9
        found = pipeline.generate(REQUEST)
    assert same(found, on_cpu(gpu.bundle, REQUEST))
    assert gpu.alive == NOTHING


def test_two_pipelines_live_side_by_side(gpus: Gpus) -> None:
    gpu = gpus()
    wanted = on_cpu(gpu.bundle, REQUEST)
    one, other = Pipeline.open(gpu.bundle.folder), Pipeline.open(gpu.bundle.folder)
    events = one.stream(REQUEST)
    next(events)
    assert same(other.generate(REQUEST), wanted)
    other.close()
    assert same([event.image for event in events if isinstance(event, ImageDone)], wanted)
    one.close()
    assert gpu.alive == NOTHING


def test_threads_take_turns(gpus: Gpus) -> None:
    gpu = gpus()
    requests = [Request(classes=[i, i + 1], seed=i, steps=STEPS) for i in range(3)]
    found: dict[int, list[GeneratedImage]] = {}
    with Pipeline.open(gpu.bundle.folder) as pipeline:

        def work(i: int) -> None:
            found[i] = pipeline.generate(requests[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, request in enumerate(requests):
        assert same(found[i], on_cpu(gpu.bundle, request))
    assert gpu.alive == NOTHING


def test_engines_say_how_many_images_they_take(gpus: Gpus, exported: Callable[..., Bundle]) -> None:
    gpu = gpus()
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        assert pipeline.max_batch == MAX_IMAGES
        assert pipeline.choice.target == TARGET
    with pytest.raises(RequestError, match=r"max_batch is 5, and the engines of trt:current take at most 4"):
        Pipeline.open(gpu.bundle.folder, max_batch=5)
    assert gpu.alive == NOTHING
    with Pipeline.open(gpu.bundle.folder) as pipeline, pipeline.backend.current():
        sizes = {"R": 9, "B": 9}
        spec = gpu.bundle.stage(StageName.TOKENS)
        buffers = {
            tensor.name: pipeline.backend.empty(tensor.sized(sizes), tensor.dtype)
            for tensor in (*spec.inputs, *spec.outputs)
        }
        with pytest.raises(BuildError, match=r"built for at most 4 images at once.*--max-images N"):
            pipeline.backend.load(StageName.TOKENS).bind(buffers)


def test_another_thread_than_the_one_that_opened_it_may_close_it(gpus: Gpus) -> None:
    gpu = gpus()
    pipeline = Pipeline.open(gpu.bundle.folder)
    events = pipeline.stream(REQUEST)
    for _ in range(4):
        next(events)
    thread = threading.Thread(target=pipeline.close)
    thread.start()
    thread.join()
    assert gpu.alive == NOTHING


def test_prompts_of_other_lengths_keep_the_captured_patch(gpus: Gpus) -> None:
    gpu = gpus(TEXT)
    requests = [
        Request(prompts=["hello", "a much longer picture of one"], seed=1, steps=2, output="tokens"),
        Request(prompts=["one more of another length", "two"], seed=4, steps=2, output="tokens"),
    ]
    found, contexts = [], []
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        for request in requests:
            found.append(pipeline.generate(request))
            contexts.append(gpu.contexts)
    assert contexts[0] == contexts[1]  # those of the first prompt's length are gone
    with Pipeline.open(gpu.bundle.folder, device="cpu") as pipeline:
        wanted = [pipeline.generate(request) for request in requests]
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(np.array_equal(one.tokens, other.tokens) for one, other in zip(ours, theirs, strict=True))
    patches = gpu.bundle.model.default_size.patches
    assert gpu.log.count("graph") == 2 * (patches - 1) - 1  # one eager patch in total, not one a request
    assert gpu.alive == NOTHING


def test_windows_give_the_images_of_the_cpu_and_everything_back(gpus: Gpus) -> None:
    gpu = gpus()
    window = WindowSpec(tolerance=1e-6, runs=())  # random heads multiply what is left of a state's move
    replace(gpu.bundle, window=window).write()
    request = replace(REQUEST, steps=6, window=3)
    with Pipeline.open(gpu.bundle.folder) as pipeline:
        found = pipeline.generate(request)
        graphs = gpu.log.count("graph")
        pipeline.generate(request)
        # A patch is the graph of its beginning, that of each sweep, and what embeds its result.
        assert gpu.log.count("graph") - graphs >= 2 * (gpu.bundle.model.default_size.patches - 1)
    assert same(found, on_cpu(gpu.bundle, replace(request, window=1)))
    assert gpu.alive == NOTHING
