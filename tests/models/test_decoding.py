"""Latents become images as the family's own pipeline makes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from families import FAMILIES, LATENT, tiny_ldm_kl, tiny_ldm_vq
from mezzotint.errors import ConfigError, ModelError
from mezzotint.models.conditioning import condition_inputs, encode_conditions
from mezzotint.models.decoding import DECODE_BATCH, decode_latents, first_stage, image_shape
from mezzotint.models.denoiser import sample_shape
from mezzotint.progress import as_callback
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.trajectory import sample, sample_latents, start_noise
from phases import Told


@pytest.mark.parametrize("name", FAMILIES)
def test_images_have_their_shape_and_range(name: str) -> None:
    pipeline = FAMILIES[name]()
    x = 3 * start_noise([1, 2, 3], sample_shape(pipeline))
    images = decode_latents(pipeline, x)
    assert images.shape == (3, *image_shape(pipeline))
    assert images.shape[-1] == {"ddim": 16, "ldm-vq": 32, "ldm-class": 32}.get(name, 64)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    torch.testing.assert_close(decode_latents(pipeline, x, batch_size=2), images, rtol=1e-5, atol=1e-5)
    assert decode_latents(pipeline, x[:0]).shape == (0, *image_shape(pipeline))


def test_images_can_be_saved_whatever_the_decoders_memory_format() -> None:
    pipeline = tiny_ldm_kl()
    pipeline.vae.to(memory_format=torch.channels_last)
    for count in (1, DECODE_BATCH + 1):
        assert decode_latents(pipeline, start_noise(range(count), sample_shape(pipeline))).is_contiguous()


def test_pixels_are_only_clipped() -> None:
    x = 2 * start_noise([0], (3, 16, 16))
    assert torch.equal(decode_latents(FAMILIES["ddim"](), x), x.clamp(-1, 1))


def test_codes_are_looked_up() -> None:
    """A VQ first stage decodes the nearest code: a small shift of the latents changes nothing."""
    pipeline = tiny_ldm_vq()
    codes = pipeline.vqvae.quantize.embedding.weight.detach()
    z = codes[torch.arange(64) % len(codes)].view(1, 8, 8, 3).movedim(-1, 1)
    distances = torch.cdist(codes, codes)
    shift = 0.2 * float(distances[distances > 0].min()) / 3**0.5
    assert torch.equal(decode_latents(pipeline, z), decode_latents(pipeline, z + shift))


def test_latents_are_scaled() -> None:
    """Encode, scale, decode: what the first stage does by itself."""
    pipeline = tiny_ldm_kl()
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = pipeline.vae.encode(image).latent_dist.mean
    expected = pipeline.vae.decode(z).sample.clamp(-1, 1)
    torch.testing.assert_close(decode_latents(pipeline, z * 0.18215), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ldm-vq", "ldm-kl", "ldm-class"])
def test_samples_equal_those_of_the_familys_own_pipeline(name: str) -> None:
    pipeline: Any = FAMILIES[name]()
    seeds, labels = [3, 1, 2], [5, 0, 7]
    conditions = encode_conditions(pipeline, labels) if name == "ldm-class" else None
    sampler = SamplerConfig(steps=10, spacing="uniform", guidance_scale=3.0)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    called: dict[str, Any] = {"generator": generators, "num_inference_steps": 10, "output_type": "np"}
    theirs = pipeline(labels, **called) if name == "ldm-class" else pipeline(3, **called)
    ours = sample(pipeline, seeds, sampler=sampler, conditions=conditions)
    torch.testing.assert_close(ours.movedim(1, -1) / 2 + 0.5, torch.tensor(theirs.images), rtol=0, atol=1e-3)
    assert ours.std() > 0.05


@pytest.mark.parametrize("name", LATENT)
def test_half_precision_first_stages_give_float32_images(name: str) -> None:
    pipeline = FAMILIES[name]()
    x = start_noise([1], sample_shape(pipeline))
    exact = decode_latents(pipeline, x)
    pipeline.to(torch.bfloat16)
    images = decode_latents(pipeline, x)
    assert images.dtype == torch.float32
    assert (images - exact).abs().mean() < 0.1


@pytest.mark.parametrize("name", LATENT)
def test_images_are_decoded_when_the_last_step_is_done(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of the decoder's own, one phase for all, which begins before the first."""
    pipeline, told = FAMILIES[name](), Told()
    stage = first_stage(pipeline)
    monkeypatch.setattr(stage, "decode", decode_and_say(stage, told))
    conditions = encode_conditions(pipeline, condition_inputs(pipeline, "evaluation", 18))
    progress = {"progress": as_callback(told, "sample"), "decode_progress": as_callback(told, "decode images")}
    sampler = SamplerConfig(steps=1, spacing="uniform")
    images = sample(pipeline, range(18), sampler=sampler, batch_size=9, conditions=conditions, **progress)
    decoded = [("decode images", 18), 0, "decode 16", 16, "decode 2", 2, "end"]
    assert told.words == [("sample", 18), 0, 9, 9, "end", *decoded]
    assert len(images) == 18


def decode_and_say(stage: Any, told: Told) -> Any:
    """`stage.decode`, each call of which is written down among what is told."""
    decode = stage.decode

    def said(z: Tensor, **options: Any) -> Any:
        told.words.append(f"decode {len(z)}")
        return decode(z, **options)

    return said


def test_what_cannot_be_decoded_is_named() -> None:
    pipeline: Any = tiny_ldm_vq()
    x = start_noise([1], (3, 8, 8))
    with pytest.raises(ConfigError, match="batch_size: expected at least 1, got 0"):
        decode_latents(pipeline, x, batch_size=0)
    pipeline.register_modules(vqvae=None)
    with pytest.raises(ModelError, match="LDMPipeline: its vqvae is missing, so latents cannot be decoded"):
        sample(pipeline, [1], progress=lambda *p: pytest.fail("too late"))
    latents = sample_latents(pipeline, [1], sampler=SamplerConfig(steps=2, spacing="uniform"))
    assert latents.shape == (1, 3, 8, 8)
