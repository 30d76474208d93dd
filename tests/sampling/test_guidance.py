"""Guidance: one call on [uncond; cond] rows, equation (1), and nothing where it is off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from families import tiny_ldm_class, tiny_sd
from mezzotint.errors import ConfigError
from mezzotint.models.conditioning import encode_conditions
from mezzotint.models.conditions import Conditions
from mezzotint.models.decoding import decode_latents
from mezzotint.models.denoiser import predict_eps
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.guidance import combine, guided_eps, is_guided, network_rows
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import iterate, record_at, sample, sample_latents, start_noise

SEEDS = [5, 0, 9, 4_000_000_000]
PROMPTS = ["a red apple", "an ant", "at an apple", ""]
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def text() -> Any:
    pipeline = tiny_sd()
    pipeline.unet.to(torch.float64)  # float32 kernels round differently for other batch sizes
    return pipeline


@pytest.fixture(scope="module")
def conditions(text: Any) -> Conditions:
    found = encode_conditions(text, PROMPTS)
    assert found is not None
    return found


def test_one_call_on_uncond_then_cond_rows(text: Any, conditions: Conditions) -> None:
    x = start_noise(SEEDS, SHAPE)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = text.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs["encoder_hidden_states"])), with_kwargs=True
    )
    eps = guided_eps(text.unet, x, 501, conditions, 7.5)
    handle.remove()
    [(rows, states)] = seen
    assert torch.equal(rows.float(), torch.cat([x, x]))
    assert conditions.uncond is not None
    both = torch.cat([conditions.uncond["encoder_hidden_states"], conditions.cond["encoder_hidden_states"]])
    assert torch.equal(states, both)
    e_u = predict_eps(text.unet, x, 501, conditions.uncond).double()
    e_c = predict_eps(text.unet, x, 501, conditions.cond).double()
    torch.testing.assert_close(eps.double(), e_u + 7.5 * (e_c - e_u), rtol=1e-5, atol=1e-5)
    assert (e_c - e_u)[:3].abs().amax() > 1e-4  # the prompts do matter
    torch.testing.assert_close(e_c[3], e_u[3])  # the empty prompt is the unconditional row


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_guidance_is_off_where_nothing_calls_for_it(text: Any, conditions: Conditions, scale: float) -> None:
    x = start_noise(SEEDS, SHAPE)
    plain = Conditions(conditions.cond, None, conditions.labels)
    rows = network_rows(x, plain, scale)
    assert not is_guided(plain, scale)
    assert not is_guided(None, scale)
    assert rows.x is x
    assert rows.cond is plain.cond
    assert network_rows(x, None, scale) == (x, {})
    assert combine(x, plain, scale) is x
    expected = predict_eps(text.unet, x, 501, conditions.cond)
    assert torch.equal(guided_eps(text.unet, x, 501, plain, scale), expected)
    assert torch.equal(guided_eps(text.unet, x, 501, conditions, 1.0), expected)


def test_scale_zero_is_the_unconditional_network(text: Any, conditions: Conditions) -> None:
    x = start_noise(SEEDS, SHAPE)
    eps = guided_eps(text.unet, x, 501, conditions, 0.0)
    assert conditions.uncond is not None
    torch.testing.assert_close(eps, predict_eps(text.unet, x, 501, conditions.uncond))


@pytest.mark.parametrize("kind", ["ddim", "plms"])
def test_guided_samples_do_not_depend_on_the_batch(text: Any, conditions: Conditions, kind: Any) -> None:
    sampler = SamplerConfig(kind=kind, steps=5, spacing="uniform", guidance_scale=3.0)
    together = sample_latents(text, SEEDS, sampler=sampler, conditions=conditions)
    assert len({float(x.sum()) for x in together}) == len(SEEDS)
    for size in (1, 3):
        other = sample_latents(text, SEEDS, sampler=sampler, conditions=conditions, batch_size=size)
        torch.testing.assert_close(other, together, rtol=1e-5, atol=1e-5)
    order = [2, 0, 3, 1]
    shuffled = sample_latents(text, [SEEDS[i] for i in order], sampler=sampler, conditions=conditions.rows(order))
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=1e-5)


def test_stochastic_noise_is_of_the_seed_with_guidance_too() -> None:
    pipeline = tiny_ldm_class()
    pipeline.unet.to(torch.float64)
    conditions = encode_conditions(pipeline, [1, 2, 3, 1])
    sampler = SamplerConfig(steps=5, spacing="uniform", eta=1.0, guidance_scale=3.0)
    together = sample_latents(pipeline, SEEDS, sampler=sampler, conditions=conditions)
    apart = sample_latents(pipeline, SEEDS, sampler=sampler, conditions=conditions, batch_size=1)
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)
    still = sample_latents(pipeline, SEEDS, sampler=sampler.model_copy(update={"eta": 0.0}), conditions=conditions)
    assert (still - together).abs().amax((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("kind", ["ddim", "plms"])
def test_recordings_are_those_of_the_guided_trajectory(text: Any, conditions: Conditions, kind: Any) -> None:
    scheduler = make_scheduler(text, SamplerConfig(kind=kind, steps=5, spacing="uniform"))
    steps = torch.tensor([4, 0, 2, 1])
    drawing: dict[str, Any] = {"shape": SHAPE, "conditions": conditions, "guidance_scale": 5.0}
    x_t, t = record_at(text.unet, scheduler, SEEDS, steps, batch_size=2, **drawing)
    states = list(iterate(text.unet, scheduler, SEEDS, **drawing))
    expected = torch.stack([states[step].x_t[row] for row, step in enumerate(steps.tolist())])
    torch.testing.assert_close(x_t, expected, rtol=1e-5, atol=1e-5)
    assert t.tolist() == [scheduler.times[step] for step in steps]
    x = states[2].x_t
    torch.testing.assert_close(states[2].eps, guided_eps(text.unet, x, states[2].t, conditions, 5.0))


def test_text_samples_equal_those_of_stable_diffusion() -> None:
    """diffusers' own pipeline with a generator for each seed: CLIP, guidance, PNDM and the scaled first stage."""
    pipeline = tiny_sd()
    sampler = SamplerConfig(kind="plms", steps=10, spacing="uniform", guidance_scale=7.5)
    conditions = encode_conditions(pipeline, PROMPTS[:3])
    latents = sample_latents(pipeline, SEEDS[:3], sampler=sampler, conditions=conditions)
    drawing: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 7.5, "height": 64, "width": 64}
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[:3]]
    theirs = pipeline(PROMPTS[:3], generator=generators, output_type="latent", **drawing).images
    torch.testing.assert_close(latents, theirs, rtol=1e-3, atol=1e-3)
    images = sample(pipeline, SEEDS[:3], sampler=sampler, conditions=conditions)
    assert torch.equal(images, decode_latents(pipeline, latents))
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[:3]]
    pictures = pipeline(PROMPTS[:3], generator=generators, output_type="pt", **drawing).images
    torch.testing.assert_close(images / 2 + 0.5, pictures, rtol=0, atol=1e-3)


def test_conditional_models_need_conditions(text: Any) -> None:
    with pytest.raises(ConfigError, match="StableDiffusionPipeline needs a text condition for each of 2 seeds"):
        sample(text, [1, 2])
    with pytest.raises(ConfigError, match="ClassConditionalPipeline needs a class condition for each of 1 seeds"):
        sample(tiny_ldm_class(), [1])
