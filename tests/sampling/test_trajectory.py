"""A seed is the identity of a sample; recordings keep what was asked for and nothing else."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline
from torch import Tensor

from families import FAMILIES
from mezzotint.errors import ConfigError
from mezzotint.models.conditions import Conditions
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.ddim import DDIM
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import State, iterate, record_at, sample, start_noise
from tiny import tiny_pipeline, tiny_unet

SHAPE = (3, 16, 16)
SEEDS = [11, 5, 4_000_000_000, 0, 7, 8, 9]


@pytest.fixture(scope="module")
def pipeline() -> DDIMPipeline:
    """In float64: float32 kernels round differently for other batch sizes (1e-6 of eps), early steps amplify it."""
    return double(tiny_pipeline())


def double(pipeline: DDIMPipeline) -> DDIMPipeline:
    pipeline.unet.to(torch.float64)
    return pipeline


def full_recording(pipeline: DDIMPipeline, scheduler: DDIM, seeds: list[int]) -> Tensor:
    """x_t of all steps, [steps, N, C, H, W]."""
    return torch.stack([state.x_t for state in iterate(pipeline.unet, scheduler, seeds, shape=SHAPE)])


class CountedRows:
    """Counts the rows that a network computes while the block runs."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.calls: list[int] = []

    def __enter__(self) -> CountedRows:
        self.handle = self.network.register_forward_pre_hook(lambda _, args: self.calls.append(len(args[0])))
        return self

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


def test_start_noise_is_the_draw_of_each_seed() -> None:
    together = start_noise(SEEDS, SHAPE)
    assert together.dtype == torch.float32
    for row, seed in zip(together, SEEDS, strict=True):
        assert torch.equal(row, start_noise([seed], SHAPE)[0])
        assert torch.equal(row, torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)))
    assert len({float(row.sum()) for row in together}) == len(SEEDS)


@pytest.mark.parametrize("seed", [-1, 1 << 32, (1 << 40) + 3])
def test_seeds_beyond_what_the_generator_reads_are_refused(seed: int) -> None:
    """torch's CPU generator drops the upper 32 bits: two such seeds would be one sample."""
    with pytest.raises(ConfigError, match=rf"seed {seed}: expected 0 to 2\*\*32 - 1"):
        start_noise([1, seed], SHAPE)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sample_does_not_depend_on_its_batch_or_order(pipeline: DDIMPipeline, eta: float) -> None:
    sampler = SamplerConfig(steps=6, eta=eta)
    images = sample(pipeline, SEEDS, sampler=sampler, batch_size=7)
    assert images.shape == (7, *SHAPE)
    for size in (1, 3):
        other = sample(pipeline, SEEDS, sampler=sampler, batch_size=size)
        torch.testing.assert_close(other, images, rtol=0, atol=1e-5)
    backwards = sample(pipeline, SEEDS[::-1], sampler=sampler, batch_size=2).flip(0)
    torch.testing.assert_close(backwards, images, rtol=0, atol=1e-5)
    assert len({float(image.sum()) for image in images}) == len(SEEDS)


def test_float32_samples_agree_over_batches_up_to_the_kernels() -> None:
    pipeline, sampler = tiny_pipeline(), SamplerConfig(steps=6)
    together = sample(pipeline, SEEDS, sampler=sampler)
    torch.testing.assert_close(sample(pipeline, SEEDS, sampler=sampler, batch_size=2), together, rtol=0, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize(("spacing", "steps", "seeds"), [("uniform", 10, [3, 1, 2]), ("quadratic", 100, [4])])
def test_samples_equal_those_of_the_diffusers_pipeline(eta: float, spacing: str, steps: int, seeds: list[int]) -> None:
    """With a generator for each seed diffusers draws the noise as we do: at every step, even one that stands still.

    On uniform times with its own scheduler; on quadratic ones, 100 of which have repeats, with ours in its place.
    """
    pipeline = tiny_pipeline()
    ours = sample(pipeline, seeds, sampler=SamplerConfig(steps=steps, spacing=spacing, eta=eta))
    if spacing == "quadratic":
        pipeline.scheduler = make_scheduler(pipeline, steps, spacing)
    theirs = pipeline(
        batch_size=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        eta=eta,
        num_inference_steps=steps,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=0, atol=1e-5)
    assert ours.std() > 0.1


def test_images_lie_in_the_unit_range_on_the_cpu(pipeline: DDIMPipeline) -> None:
    last: list[Tensor] = []
    images = sample(
        pipeline, [0, 1], sampler=SamplerConfig(steps=3), callback=lambda _, state: last.append(state.x_prev)
    )
    assert last[-1].abs().max() > 1  # the random network does leave the range
    assert torch.equal(images, last[-1].clamp(-1, 1))
    assert (images.dtype, images.device.type) == (torch.float32, "cpu")


def test_states_chain_and_carry_no_graph(pipeline: DDIMPipeline) -> None:
    network = tiny_unet().requires_grad_(True)
    scheduler = make_scheduler(pipeline, 5)
    states = list(iterate(network, scheduler, [1, 2], shape=SHAPE))
    assert [state.step for state in states] == [0, 1, 2, 3, 4]
    assert [state.t for state in states] == scheduler.times
    assert torch.equal(states[0].x_t, start_noise([1, 2], SHAPE))
    for state, following in pairwise(states):
        assert torch.equal(state.x_prev, following.x_t)
        assert torch.equal(scheduler.move(state.eps, state.step, state.x_t), state.x_prev)
    assert not any(state.eps.requires_grad or state.x_prev.requires_grad for state in states)
    for _ in iterate(network, scheduler, [1], shape=SHAPE):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("eta", [0.0, 0.8])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_record_at_gives_the_rows_of_a_full_recording(pipeline: DDIMPipeline, eta: float, batch_size: int) -> None:
    scheduler = make_scheduler(pipeline, 8, eta=eta)
    steps = torch.tensor([3, 0, 7, 1, 0, 3, 5])
    x_t, t = record_at(pipeline.unet, scheduler, SEEDS, steps, shape=SHAPE, batch_size=batch_size)
    everything = full_recording(pipeline, scheduler, SEEDS)
    torch.testing.assert_close(x_t, everything[steps, torch.arange(7)], rtol=1e-5, atol=1e-5)
    assert torch.equal(x_t[steps == 0], start_noise([SEEDS[1], SEEDS[4]], SHAPE))
    assert t.tolist() == [scheduler.times[step] for step in steps]


def test_record_at_stops_each_batch_at_its_last_needed_step(pipeline: DDIMPipeline) -> None:
    scheduler = make_scheduler(pipeline, 8)
    steps = torch.tensor([7, 0, 1, 0, 6, 1])  # batches of two after sorting: (0, 0), (1, 1), (6, 7)
    told: list[tuple[int, int]] = []
    with CountedRows(pipeline.unet) as counted:
        record_at(
            pipeline.unet, scheduler, SEEDS[:6], steps, shape=SHAPE, batch_size=2, progress=lambda *p: told.append(p)
        )
    assert counted.calls == [2] * (0 + 1 + 7)
    assert told == [(2 * calls, 16) for calls in range(9)]


def test_record_at_keeps_one_sample_of_each_trajectory(pipeline: DDIMPipeline) -> None:
    """Memory is O(N d): at the last step there is the result and a few batches, whatever the number of steps."""
    held: list[int] = []

    def count_held(*_: Any) -> None:
        tensors = (value for value in gc.get_objects() if type(value) is Tensor)
        held.append(sum(len(value) for value in tensors if value.ndim == 4 and value.shape[1:] == SHAPE))

    scheduler = make_scheduler(pipeline, 30)
    steps = torch.tensor([29, 28, 29])

    def observe(module: torch.nn.Module, args: Any) -> None:
        calls.append(1)
        if len(calls) == 29:
            count_held()

    gc.collect()
    count_held()
    calls: list[int] = []
    handle = pipeline.unet.register_forward_pre_hook(observe)
    record_at(pipeline.unet, scheduler, [1, 2, 3], steps, shape=SHAPE)
    handle.remove()
    assert held[1] - held[0] <= 6 * 3


def class_conditions(labels: Tensor) -> Conditions:
    return Conditions({"class_labels": labels}, None, [str(label) for label in labels.tolist()])


def test_condition_rows_follow_their_seeds() -> None:
    pipeline = double(tiny_pipeline(num_class_embeds=5))
    sampler, labels = SamplerConfig(steps=4), torch.tensor([4, 0, 2, 1, 3, 0, 4])
    conditions = class_conditions(labels)
    images = sample(pipeline, SEEDS, sampler=sampler, batch_size=3, conditions=conditions)
    for row, (seed, image) in enumerate(zip(SEEDS, images, strict=True)):
        alone = sample(pipeline, [seed], sampler=sampler, conditions=conditions.rows([row]))
        torch.testing.assert_close(alone[0], image, rtol=0, atol=1e-5)
    flipped = class_conditions(labels.flip(0))
    other = sample(pipeline, SEEDS, sampler=sampler, batch_size=3, conditions=flipped)
    assert (other - images).abs().amax((1, 2, 3)).gt(1e-3).tolist() == labels.ne(labels.flip(0)).tolist()

    scheduler, steps = make_scheduler(pipeline, sampler), torch.tensor([3, 1, 2, 0, 3, 2, 1])
    x_t, _ = record_at(pipeline.unet, scheduler, SEEDS, steps, shape=SHAPE, batch_size=2, conditions=conditions)
    states = list(iterate(pipeline.unet, scheduler, SEEDS, shape=SHAPE, conditions=conditions))
    expected = torch.stack([states[step].x_t[row] for row, step in enumerate(steps.tolist())])
    torch.testing.assert_close(x_t, expected, rtol=1e-5, atol=1e-5)


def test_batches_cover_all_rows_and_tell_their_progress(pipeline: DDIMPipeline) -> None:
    told: list[tuple[int, int]] = []
    seen: list[tuple[slice, int]] = []

    def note(rows: slice, state: State) -> None:
        seen.append((rows, state.step))

    sample(
        pipeline, SEEDS, sampler=SamplerConfig(steps=4), batch_size=3, progress=lambda *p: told.append(p), callback=note
    )
    assert seen == [(part, step) for part in (slice(0, 3), slice(3, 6), slice(6, 7)) for step in range(4)]
    assert told == [(done, 28) for done in (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 26, 27, 28)]


def test_progress_begins_before_the_network_is_called(pipeline: DDIMPipeline) -> None:
    """The first call may take a minute: it compiles."""
    told: list[tuple[int, int]] = []
    with CountedRows(pipeline.unet) as counted:
        sample(
            pipeline,
            SEEDS[:2],
            sampler=SamplerConfig(steps=2),
            progress=lambda *p: told.append((len(counted.calls), *p)),
        )
    assert told == [(0, 0, 4), (1, 2, 4), (2, 4, 4)]


def test_pixels_are_not_decoded(pipeline: DDIMPipeline) -> None:
    sample(pipeline, [1, 2], sampler=SamplerConfig(steps=1), decode_progress=lambda *p: pytest.fail(f"{p}"))


def test_no_seeds_give_no_images(pipeline: DDIMPipeline) -> None:
    nobody: dict[str, Any] = dict.fromkeys(("progress", "decode_progress"), lambda *p: pytest.fail("nothing to tell"))
    assert sample(pipeline, [], **nobody).shape == (0, *SHAPE)
    assert sample(FAMILIES["ldm-vq"](), [], **nobody).shape == (0, 3, 32, 32)
    x_t, t = record_at(pipeline.unet, make_scheduler(pipeline, 3), [], torch.tensor([], dtype=torch.int64), shape=SHAPE)
    assert (x_t.shape, t.shape) == ((0, *SHAPE), (0,))


def test_what_does_not_fit_is_named(pipeline: DDIMPipeline) -> None:
    scheduler = make_scheduler(pipeline, 4)
    network: Any = pipeline.unet
    three = class_conditions(torch.zeros(3))
    with pytest.raises(ConfigError, match=r"conditions: expected a row for each of 2 seeds, got 3"):
        sample(pipeline, [1, 2], conditions=three)
    with pytest.raises(ConfigError, match=r"conditions: expected a row for each of 2 seeds, got 3"):
        record_at(network, scheduler, [1, 2], torch.tensor([1, 1]), shape=SHAPE, conditions=three)
    with pytest.raises(ConfigError, match="batch_size: expected at least 1, got 0"):
        sample(pipeline, [1], batch_size=0)
    with pytest.raises(ConfigError, match="steps_of_sample: expected 0 to 3, got 1 to 4"):
        record_at(network, scheduler, [1, 2], torch.tensor([1, 4]), shape=SHAPE)
    with pytest.raises(ConfigError, match="steps_of_sample: expected a step for each of 2 seeds, got 1"):
        record_at(network, scheduler, [1, 2], torch.tensor([1]), shape=SHAPE)


def test_half_precision_networks_keep_float32_samples() -> None:
    pipeline = tiny_pipeline()
    exact = sample(pipeline, [1, 2], sampler=SamplerConfig(steps=3))
    pipeline.unet.to(torch.bfloat16)
    images = sample(pipeline, [1, 2], sampler=SamplerConfig(steps=3))
    assert images.dtype == torch.float32
    assert (images - exact).abs().mean() < 0.05
