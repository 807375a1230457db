"""A server under load: mixed requests of many clients, some cut off, malformed or too large, while workers are killed.

    python bench/studies/serve_load.py bundles/digits-4x --requests 300 --clients 24 --kills 7 --images 500

Every returned image is compared bit by bit with the pipeline's of the same class and seed: an image that is lost or
sent to another client fails the run. A request whose worker was killed is sent again, as its error says. Then memory
is read over more images, and over requests of one kept-alive connection. The last line is JSON; the exit status is 1
where a check fails.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from serve_checks import Made, growth, growth_over_requests, killing, memory_over, metric, wrong_images

QUEUE = 8  # smaller than the number of clients, so that some are refused and must retry
MAX_BODY = 200_000
STEPS = 4
FLAT = 0.05  # by how much the memory of the second half may exceed that of the first reading
KEPT_ALIVE = 10_000  # requests of one connection
LEAST_KEPT = 2.0  # MB by which the server may grow over them
RETRIED = ("refused", "worker died")


class Load:
    """Runs the clients and records their outcomes."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self.client, self.random = client, random.Random(seed)
        self.made: list[Made] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.seconds: list[float] = []
        self.longest_queue = 0
        self.kinds: list[tuple[int, Callable[[], Awaitable[str]]]] = [
            (30, self.whole),
            (20, self.streamed),
            (15, self.job),
            (15, self.web_ui),
            (5, self.tokens),
            (10, self.about),
            (10, self.leaving),
            (6, self.malformed),
            (4, self.too_large),
        ]

    async def run(self, requests: int, clients: int) -> None:
        weights, kinds = zip(*self.kinds, strict=True)
        waiting = iter(self.random.choices(kinds, weights, k=requests))

        async def client() -> None:
            for kind in waiting:
                started = time.perf_counter()
                outcome = await kind()
                self.seconds.append(time.perf_counter() - started)
                self.outcomes[kind.__name__, outcome] += 1

        watching = asyncio.create_task(self._watch_queue())
        await asyncio.gather(*(client() for _ in range(clients)))
        watching.cancel()

    def asked(self, most: int = 4) -> dict[str, Any]:
        return {
            "prompt": str(self.random.randrange(10)),
            "seed": self.random.randrange(2**31),
            "n": self.random.randint(1, most),
            "num_inference_steps": STEPS,
        }

    async def whole(self) -> str:
        asked = self.asked()
        answer = await self._until_taken("/v1/images/generations", asked)
        return self._keep(asked, [(data["seed"], data["b64_json"]) for data in answer.json()["data"]])

    async def web_ui(self) -> str:
        """As clients of AUTOMATIC1111's web UI ask."""
        asked = self.asked()
        body = {"prompt": asked["prompt"], "seed": asked["seed"], "steps": STEPS, "batch_size": asked["n"]}
        answer = (await self._until_taken("/sdapi/v1/txt2img", body)).json()
        seeds = json.loads(answer["info"])["all_seeds"]
        return self._keep(asked, list(zip(seeds, answer["images"], strict=True)))

    async def streamed(self) -> str:
        asked = self.asked()
        body = {**asked, "stream": True, "partial_images": 2}
        while True:
            text = (await self._until_taken("/v1/images/generations", body)).text
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
            if not self._worker_died(events[-1].get("error")):
                break
        whole = [event for event in events if event["type"] == "image_generation.completed"]
        return self._keep(asked, [(event["seed"], event["b64_json"]) for event in whole])

    async def job(self) -> str:
        asked = self.asked()
        while True:
            job = (await self._until_taken("/v1/jobs", {**asked, "preview_every": 4})).json()
            while job["status"] in ("queued", "running"):
                await asyncio.sleep(0.05)
                job = (await self.client.get(f"/v1/jobs/{job['id']}")).json()
            if not self._worker_died(job["error"]):
                break
        if job["status"] != "completed":
            return job["status"]
        return self._keep(asked, [(data["seed"], data["b64_json"]) for data in job["data"]])

    async def tokens(self) -> str:
        file = io.BytesIO()
        noise = np.random.default_rng(self.random.randrange(2**31)).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(file, "PNG")
        image = base64.b64encode(file.getvalue()).decode()
        return str((await self._until_taken("/v1/tokens", {"image": image})).status_code)

    async def about(self) -> str:
        path = self.random.choice(["/v1/models", "/v1/capabilities", "/health", "/metrics", "/", "/openapi.json"])
        return str((await self.client.get(path)).status_code)

    async def leaving(self) -> str:
        """Disconnect in the middle of a stream or of a whole answer."""
        body = {**self.asked(), "num_inference_steps": 200, "stream": self.random.random() < 0.5}
        request = asyncio.create_task(self._until_taken("/v1/images/generations", body))
        await asyncio.wait({request}, timeout=self.random.uniform(0.05, 0.6))
        request.cancel()
        (answer,) = await asyncio.gather(request, return_exceptions=True)
        return "left" if isinstance(answer, asyncio.CancelledError) else "answered before"

    async def malformed(self) -> str:
        wrong = [b"{", b"[]", b"\xff\xfe", b'{"prompt": "7", "colour": 1}', b'{"prompt": "horse"}', b'{"prompt": 7}']
        content = self.random.choice([*wrong, b'{"prompt": "7", "size": "1x1"}', b'{"prompt": "7", "n": -1}'])
        headers = {"Content-Type": "application/json"}
        while (
            answer := await self.client.post("/v1/images/generations", content=content, headers=headers)
        ).status_code == 429:  # what JSON alone does not show to be wrong needs a place in the queue first
            await asyncio.sleep(int(answer.headers["retry-after"]) * self.random.uniform(0.5, 1))
        return str(answer.status_code)

    async def too_large(self) -> str:
        asked = {"image": "A" * (MAX_BODY + 1)}
        return str((await self.client.post("/v1/tokens", json=asked)).status_code)

    def wrong(self) -> list[str]:
        """Return the outcomes that should not occur."""
        right = {
            "tokens": {"200"},
            "about": {"200"},
            "leaving": {"left", "answered before"},
            "malformed": {"400"},
            "too_large": {"413"},
        }
        return [
            f"{kind}: {outcome}"
            for kind, outcome in self.outcomes
            if kind not in RETRIED and outcome not in right.get(kind, {"whole"})
        ]

    async def _until_taken(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Send a request; where the queue is full or its worker died, retry when the server says."""
        while True:
            answer = await self.client.post(path, json=body)
            if answer.status_code == 429:
                self.outcomes["refused", "429, retried"] += 1
                await asyncio.sleep(int(answer.headers["retry-after"]) * self.random.uniform(0.5, 1))
            elif answer.status_code != 503 or not self._worker_died(answer.json()["error"]):
                return answer

    def _worker_died(self, error: dict[str, Any] | None) -> bool:
        died = error is not None and error["code"] == "worker_died"
        if died:
            self.outcomes["worker died", "retried"] += 1
        return died

    def _keep(self, asked: dict[str, Any], images: list[tuple[int, str]]) -> str:
        if [seed for seed, _ in images] != [asked["seed"] + i for i in range(asked["n"])]:
            return "lost"
        self.made += [(int(asked["prompt"]), seed, file) for seed, file in images]
        return "whole"

    async def _watch_queue(self) -> None:
        while True:
            waiting = int(await metric(self.client, "bitdance_queue_requests"))
            self.longest_queue = max(self.longest_queue, waiting)
            await asyncio.sleep(0.02)


async def measured(url: str, server: int, args: argparse.Namespace) -> tuple[dict[str, Any], list[Made]]:
    limits = httpx.Limits(max_connections=args.clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.1)
        load = Load(client, args.seed)
        started = time.perf_counter()
        async with killing(client, server, args.kills) as killed:
            await load.run(args.requests, args.clients)
        seconds = time.perf_counter() - started
        while await metric(client, "bitdance_running_requests") + await metric(client, "bitdance_queue_requests"):
            await asyncio.sleep(0.05)  # of clients that left
        batches, batched = [await metric(client, f"bitdance_batch_images_{part}") for part in ("count", "sum")]
        for (kind, outcome), count in sorted(load.outcomes.items()):
            print(f"  {kind:10} {outcome:16} {count:5}")
        more = Load(client, seed=7)
        more.kinds = [(1, more.whole), (1, more.streamed), (1, more.job)]
        readings = await memory_over(client, more.run, args.images, args.clients) if args.images else []
        kept_alive = await growth_over_requests(url, client, KEPT_ALIVE) if args.images else None
    return {
        "requests": args.requests,
        "clients": args.clients,
        "seconds": round(seconds, 2),
        "images": len(load.made),
        "median_seconds": round(statistics.median(load.seconds), 3),
        "slowest_seconds": round(max(load.seconds), 3),
        "images_a_batch": round(batched / batches, 2),
        "longest_queue": load.longest_queue,
        "queue_limit": QUEUE,
        "outcomes": {f"{kind} {outcome}": count for (kind, outcome), count in sorted(load.outcomes.items())},
        "unexpected": load.wrong(),
        "workers_killed": len(killed),
        "seconds_without_worker": [round(seconds, 1) for seconds in killed],
        "memory": readings,
        "kept_alive_growth_mb": kept_alive,
        "memory_growth": round(growth(readings), 4) if readings else None,
    }, load.made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kills", type=int, default=0, help="workers to kill meanwhile")
    parser.add_argument("--images", type=int, default=500, help="over which memory is watched; 0: not at all")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    options = ["--port", "0", "--queue", str(QUEUE), "--max-body", str(MAX_BODY)]
    command = [sys.executable, "-m", "bitdance_edge", "serve", str(Path(args.bundle)), *options]
    server = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert server.stdout is not None
        result, made = asyncio.run(measured(server.stdout.readline().strip(), server.pid, args))
    finally:
        server.terminate()
        server.wait(60)
    result["wrong_images"] = wrong_images(args.bundle, made, STEPS)
    accepted = sum(count for kind, count in result["outcomes"].items() if not kind.startswith(RETRIED))
    held = {
        "no request lost": accepted == args.requests and not result["unexpected"],
        "no image of another client": result["wrong_images"] == 0,
        "queue bounded": result["longest_queue"] <= QUEUE,
        "workers killed": result["workers_killed"] == args.kills,
    }
    if result["memory_growth"] is not None:
        held["memory flat over images"] = result["memory_growth"] <= FLAT
        held["memory flat over requests"] = result["kept_alive_growth_mb"] <= LEAST_KEPT
    for name, holds in held.items():
        print(f"{name}: {'yes' if holds else 'NO'}")
    print(json.dumps({**result, "held": held}))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
