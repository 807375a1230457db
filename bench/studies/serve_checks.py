"""What ``serve_load.py`` checks beside the requests: memory, the images themselves, and killed workers."""

import asyncio
import base64
import io
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import numpy as np
import psutil
from PIL import Image

from bitdance_edge.runtime import Pipeline, Request

SAMPLE_EVERY = 100  # images between two readings of the memory
BETWEEN = (0.5, 2.0)  # seconds from a worker that is ready again to its next death, at least and at most

Made = tuple[int, int, str]  # class, seed, PNG in base64


async def metric(client: httpx.AsyncClient, name: str, label: str = "") -> float:
    """The value of a metric, summed over the lines that hold a label."""
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.split("{")[0].split()[0] == name and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def memory_over(
    client: httpx.AsyncClient, run: Callable[[int, int], Awaitable[None]], images: int, clients: int
) -> list[tuple[int, float, float]]:
    """Read (images, MB of the server, MB of the worker) while clients ask for images, after a first request of each."""
    readings = []
    before = await metric(client, "bitdance_images_total")
    while (made := await metric(client, "bitdance_images_total") - before) < images or not readings:
        await run(SAMPLE_EVERY * 2 // 5, clients)
        made = await metric(client, "bitdance_images_total") - before
        server = await metric(client, "bitdance_memory_bytes", "server")
        worker = await metric(client, "bitdance_memory_bytes", "worker")
        readings.append((int(made), server / 1e6, worker / 1e6))
        print(f"  {made:6.0f} images: server {server / 1e6:.1f} MB, worker {worker / 1e6:.1f} MB", flush=True)
    return readings


def growth(readings: list[tuple[int, float, float]]) -> float:
    """Return by which share the memory of the second half of the readings exceeds the first reading."""
    totals = [server + worker for _, server, worker in readings]
    return statistics.mean(totals[len(totals) // 2 :]) / totals[0] - 1


async def growth_over_requests(url: str, client: httpx.AsyncClient, requests: int) -> float:
    """Return the MB by which the server grows over requests of one kept-alive connection, after a tenth of them."""
    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=1)) as one:

        async def reading(count: int) -> float:
            for _ in range(count):
                (await one.get("/health")).raise_for_status()
            return await metric(client, "bitdance_memory_bytes", "server") / 1e6

        before = await reading(requests // 10)
        return round(await reading(requests) - before, 2)


def wrong_images(bundle: str, made: list[Made], steps: int) -> int:
    """Count the images that are not those of their class and seed."""
    wrong = 0
    with Pipeline.open(bundle) as pipeline:
        for i in range(0, len(made), 16):
            part = made[i : i + 16]
            request = Request(classes=[c for c, _, _ in part], seeds=[seed for _, seed, _ in part], steps=steps)
            for (_, _, file), image in zip(part, pipeline.generate(request), strict=True):
                pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))
                wrong += image.pixels is None or not np.array_equal(pixels, image.pixels)
    return wrong


@asynccontextmanager
async def killing(client: httpx.AsyncClient, server: int, times: int) -> AsyncIterator[list[float]]:
    """Kill the worker of a server, by its process id, some times; gives the seconds until each was ready again."""
    without: list[float] = []

    async def kill() -> None:
        while len(without) < times:
            await asyncio.sleep(random.uniform(*BETWEEN))
            restarts = await metric(client, "bitdance_worker_restarts_total")
            children = psutil.Process(server).children()
            max(children, key=lambda child: child.memory_info().rss).kill()
            started = time.perf_counter()
            while await metric(client, "bitdance_worker_restarts_total") == restarts:
                await asyncio.sleep(0.05)
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)
            without.append(time.perf_counter() - started)

    task = asyncio.create_task(kill())
    try:
        yield without
        if len(without) < times:
            await task
    finally:
        task.cancel()
