"""Own pipelines: they draw, they come back from a folder, and guidance does what its equation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

import mezzotint
from families import CLASSES, quiet, tiny_ldm_class, tiny_ldm_kl
from mezzotint.errors import ConfigError, ModelError
from mezzotint.models.pipelines import ClassConditionalPipeline, ClassEmbedder, LatentKLPipeline

MAKERS = {"kl": tiny_ldm_kl, "class": tiny_ldm_class}


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    """Two pictures from seed 0."""
    what = {"class_labels": [1, 2]} if isinstance(pipeline, ClassConditionalPipeline) else {"batch_size": 2}
    generator = torch.Generator().manual_seed(0)
    return pipeline(**what, generator=generator, num_inference_steps=2, output_type="np", **options).images


@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_folder_comes_back_from_us_and_from_its_own_class(kind: str, tmp_path: Path) -> None:
    pipeline: Any = MAKERS[kind]()
    pipeline.save_pretrained(tmp_path)
    images = draw(pipeline)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    for again in (mezzotint.load(tmp_path), type(pipeline).from_pretrained(tmp_path)):
        assert type(again) is type(pipeline)
        np.testing.assert_allclose(draw(quiet(again)), images, atol=1e-5)


def test_pictures_and_tuples() -> None:
    pipeline = tiny_ldm_kl()
    images = pipeline(2, num_inference_steps=1).images
    assert [image.size for image in images] == [(64, 64)] * 2
    assert len(pipeline(1, num_inference_steps=1, output_type="np", return_dict=False)[0]) == 1


def test_latents_are_divided_by_the_scale_and_decoded() -> None:
    pipeline = tiny_ldm_kl()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipeline.scheduler.set_timesteps(2)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
        expected = pipeline.vae.decode(x / 0.18215).sample.clamp(-1, 1)
    np.testing.assert_allclose(2 * draw(pipeline).transpose(0, 3, 1, 2) - 1, expected.numpy(), atol=1e-5)


def test_eta_takes_its_noise_from_the_generator() -> None:
    pipeline = tiny_ldm_kl()
    assert np.array_equal(draw(pipeline, eta=1.0), draw(pipeline, eta=1.0))
    assert not np.array_equal(draw(pipeline, eta=1.0), draw(pipeline))


def test_guidance_extrapolates_from_the_unconditional_label() -> None:
    pipeline = tiny_ldm_class()
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    pipeline.unet.register_forward_hook(lambda _, inputs, output: calls.append((inputs[2], output.sample)))
    draw(pipeline, guidance_scale=1.0)
    assert [len(context) for context, _ in calls] == [2, 2]
    calls.clear()
    taken: list[torch.Tensor] = []
    step = pipeline.scheduler.step
    pipeline.scheduler.step = lambda eps, *args, **options: taken.append(eps) or step(eps, *args, **options)
    draw(pipeline, guidance_scale=3.0)
    labels = torch.tensor([CLASSES, CLASSES, 1, 2])
    assert torch.equal(calls[0][0], pipeline.class_embedder(labels))
    e_u, e_c = calls[0][1].chunk(2)
    torch.testing.assert_close(taken[0], e_u + 3 * (e_c - e_u))


@pytest.mark.parametrize("labels", [-1, CLASSES + 1, [], [0, 99]])
def test_labels_that_do_not_exist(labels: Any) -> None:
    with pytest.raises(ConfigError, match=rf"class_labels: expected whole numbers from 0 to {CLASSES}, got"):
        tiny_ldm_class()(labels)


def test_absent_parts_are_named(tmp_path: Path) -> None:
    whole: Any = tiny_ldm_class()
    no_stage = LatentKLPipeline(None, tiny_ldm_kl().unet, whole.scheduler)
    with pytest.raises(ModelError, match="LatentKLPipeline: has no first stage"):
        no_stage()
    no_classes = ClassConditionalPipeline(whole.vqvae, whole.unet, None, whole.scheduler)
    with pytest.raises(ModelError, match="ClassConditionalPipeline: has no class embedder"):
        no_classes(1)
    no_classes.save_pretrained(tmp_path)
    assert mezzotint.load(tmp_path).class_embedder is None


def test_class_embedder() -> None:
    embedder = ClassEmbedder(num_embeddings=5, embed_dim=3)
    assert embedder.unconditional_label == 4
    labels = torch.tensor([4, 0])
    assert torch.equal(embedder(labels), embedder.embedding.weight[labels][:, None])
    assert isinstance(tiny_ldm_class().scheduler, DDIMScheduler)
    assert issubclass(ClassConditionalPipeline, DiffusionPipeline)
