"""Three numbers a step against the plain Euler-Maruyama of the model."""

import json

import numpy as np
import pytest
import torch
from places import FIXTURES
from safetensors.numpy import load_file

from bitdance_edge.model.sampler import LAST_STEP, LAST_TIME, euler_maruyama_step, time_grid, velocity
from bitdance_edge.model.sampler import patch_guidance as plain_guidance
from bitdance_edge.runtime.sampler import SAMPLERS, Schedule, patch_guidance


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 1.0), (20, 1.5), (100, 3.0)])
def test_coefficients_do_what_the_plain_step_does(steps: int, shift: float) -> None:
    schedule = Schedule.euler_maruyama(steps, shift)
    grid = time_grid(steps, shift).double()
    generator = torch.Generator().manual_seed(0)
    x, clean, noise = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    for k, (a, b, c) in enumerate(schedule.coefficients[:-1].astype(np.float64)):
        time, dt = grid[k], grid[k + 1] - grid[k]
        plain = euler_maruyama_step(x, velocity(clean, x, time), time, dt, noise)
        torch.testing.assert_close(a * x + b * clean + c * noise, plain, atol=2e-5, rtol=2e-5)
    last = x + velocity(clean, x, torch.tensor(LAST_TIME)) * LAST_STEP
    a, b, c = schedule.coefficients[-1]
    torch.testing.assert_close(float(a) * x + float(b) * clean + float(c) * noise, last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 1.0), (20, 1.5), (100, 3.0)])
def test_the_deterministic_limit_is_an_euler_step_along_the_velocity(steps: int, shift: float) -> None:
    schedule, grid = Schedule.of("ode", steps, shift), time_grid(steps, shift).double()
    generator = torch.Generator().manual_seed(0)
    x, clean = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    for k, (a, b, c) in enumerate(schedule.coefficients[:-1].astype(np.float64)):
        time, dt = grid[k], grid[k + 1] - grid[k]
        torch.testing.assert_close(a * x + b * clean, x + velocity(clean, x, time) * dt, atol=2e-5, rtol=2e-5)
        assert c == 0
    assert schedule.coefficients[-1].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(schedule.times, Schedule.of("sde", steps, shift).times)


def test_both_samplers_reach_the_distribution_that_the_head_knows() -> None:
    """A coin that shows +1 three times in four: its clean value is known at any time, so samples must show the same."""
    noise = np.random.default_rng(0).standard_normal((201, 20_000))
    shares = {}
    for sampler in SAMPLERS:
        schedule, x = Schedule.of(sampler, 200, 1.0), noise[0]
        for k, (a, b, c) in enumerate(schedule.coefficients):
            time = float(schedule.times[k])
            odds = 3 * np.exp(
                np.clip(2 * time * x / (1 - time) ** 2, -50, 50)
            )  # of +1, given t * clean + (1 - t) * noise
            x = a * x + b * (odds - 1) / (odds + 1) + c * noise[min(k + 1, 200)]
        shares[sampler] = float((x > 0).mean())
    assert shares == pytest.approx(dict.fromkeys(SAMPLERS, 0.75), abs=0.015)


def test_times_are_those_of_the_reference() -> None:
    golden = load_file(FIXTURES / "sampler" / "golden.safetensors")
    for steps, shift in json.loads((FIXTURES / "sampler" / "config.json").read_text())["cases"]:
        times = Schedule.euler_maruyama(steps, shift).times
        np.testing.assert_allclose(times[:-1], golden[f"N{steps}_s{shift}.t_all"][:-1], atol=2e-7)
        assert times[-1] == np.float32(0.95)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_guidance_schedule_is_that_of_the_model(schedule: str) -> None:
    for patch in range(16):
        assert patch_guidance(3.9, schedule, patch, 16) == plain_guidance(3.9, schedule, patch, 16)
    assert patch_guidance(3.9, "linear", 0, 16) == 1.0
