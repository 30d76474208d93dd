"""Evaluation of latent and conditional models: decoded images, the network's own rows, inputs that never calibrated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from families import CONDITIONAL, FAMILIES, LATENT, tiny_ldm_class, tiny_sd
from mezzotint.errors import ConfigError, ModelError
from mezzotint.evaluation.drawing import evaluation_inputs, sample_pairs, usual_sampler
from mezzotint.evaluation.evaluate import evaluate
from mezzotint.evaluation.report import render_report
from mezzotint.evaluation.result import Evaluation
from mezzotint.evaluation.steps import eps_sqnr
from mezzotint.models.conditioning import condition_inputs, encode_conditions
from mezzotint.models.decoding import decode_latents, first_stage, image_shape
from mezzotint.models.denoiser import predict_eps
from mezzotint.progress import as_callback
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.defaults import default_sampler
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import iterate, sample_latents
from phases import Told

SAMPLES = 3


def short(pipeline: Any) -> SamplerConfig:
    """The family's sampler with three steps."""
    return default_sampler(pipeline).model_copy(update={"steps": 3})


def rounded(name: str) -> Any:
    """The tiny model of a family with the weights of its network rounded to steps of 1/16."""
    pipeline = FAMILIES[name]()
    for parameter in pipeline.unet.parameters():
        parameter.copy_((parameter * 16).round() / 16)
    return pipeline


def marked(pipeline: Any, **fields: Any) -> Any:
    """`pipeline` with a manifest of these fields on its network, as a quantized one has."""
    pipeline.unet.quantization = SimpleNamespace(**{"bits": "w4a8", "layers": {}, "config": {}, **fields})
    return pipeline


@pytest.mark.parametrize("name", LATENT)
def test_images_are_decoded_and_their_conditions_recorded(name: str) -> None:
    pipeline, other = FAMILIES[name](), rounded(name)
    first_stage(other).decoder.conv_out.bias.add_(0.1)  # each model decodes with its own
    sampler = short(pipeline)
    drawing: dict[str, Any] = {"samples": SAMPLES, "seed": 4, "sampler": sampler, "batch_size": 2}
    pairs = sample_pairs(pipeline, other, **drawing)
    found = evaluate(pipeline, other, **drawing, pairs=pairs, resamples=2)
    assert found.shape == image_shape(pipeline) == tuple(pairs.float_images.shape[1:])
    inputs = condition_inputs(pipeline, "evaluation", SAMPLES)
    latents = sample_latents(
        other, [4, 5, 6], sampler=sampler, batch_size=2, conditions=encode_conditions(pipeline, inputs)
    )
    torch.testing.assert_close(pairs.quantized_images, decode_latents(other, latents), rtol=0, atol=1e-4)
    expected = None if inputs is None else [value if isinstance(value, str) else f"class {value}" for value in inputs]
    assert found.conditions == expected
    assert math.isfinite(found.sqnr_db)
    assert found.paired.psnr_mean.value < 60
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("drawn", [sample_pairs, evaluate])
def test_images_of_both_models_are_decoded_in_one_phase(drawn: Callable[..., Any]) -> None:
    told = Told()
    progress = {"progress": as_callback(told, "sample both"), "decode_progress": as_callback(told, "decode both")}
    pipeline = tiny_ldm_class()
    drawn(pipeline, tiny_ldm_class(), samples=2, sampler=short(pipeline), batch_size=2, **progress)
    assert told.words == [
        *[("sample both", 12), 0, 2, 2, 2, 0, 2, 2, 2, "end"],
        *[("decode both", 4), 0, 2, 0, 2, "end"],
    ]


def test_a_first_stage_that_is_missing_is_known_before_the_first_step() -> None:
    whole, lacking = tiny_ldm_class(), tiny_ldm_class()
    lacking.register_modules(vqvae=None)
    with pytest.raises(ModelError, match="its vqvae is missing"):
        sample_pairs(whole, lacking, samples=2, progress=lambda *p: pytest.fail("too late"))


@pytest.mark.parametrize("name", LATENT)
def test_a_model_against_itself_is_perfect(name: str) -> None:
    pipeline = FAMILIES[name]()
    found = evaluate(pipeline, FAMILIES[name](), samples=2, sampler=short(pipeline), batch_size=2, resamples=2)
    assert found.paired.psnr_mean.value == found.sqnr_db == math.inf


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_sqnr_is_of_the_rows_that_the_network_sees(scale: float) -> None:
    """A known shift of eps is seen at its own size, whatever guidance makes of it, against all rows of a step."""
    pipeline, other = tiny_sd(), tiny_sd()
    other.unet.conv_out.bias.add_(0.01)
    conditions = encode_conditions(pipeline, ["a red apple", "an ant", "at an ant"])
    assert conditions is not None
    assert conditions.uncond is not None
    scheduler = make_scheduler(pipeline, SamplerConfig(kind="plms", steps=3, spacing="uniform"))
    drawing: dict[str, Any] = {"shape": (4, 8, 8), "conditions": conditions, "guidance_scale": scale}
    rows = eps_sqnr(pipeline.unet, other.unet, scheduler, [1, 2, 3], steps=[0, 2], batch_size=2, **drawing)
    states = {state.step: state for state in iterate(pipeline.unet, scheduler, [1, 2, 3], **drawing)}
    for row in rows:
        x = states[row.step].x_t
        seen = [predict_eps(pipeline.unet, x, row.t, conditions.cond)]
        if scale != 1:
            seen.append(predict_eps(pipeline.unet, x, row.t, conditions.uncond))
        expected = 10 * math.log10(float(torch.cat(seen).double().square().mean()) / 0.01**2)
        assert row.sqnr_db == pytest.approx(expected, abs=0.01)


def test_conditions_of_the_sqnr_follow_their_seeds() -> None:
    pipeline, other = tiny_ldm_class(), rounded("ldm-class")
    conditions = encode_conditions(pipeline, [1, 3, 5, 7])
    scheduler = make_scheduler(pipeline, short(pipeline))
    drawing: dict[str, Any] = {"shape": (3, 8, 8), "conditions": conditions, "guidance_scale": 3.0, "steps": [0, 2]}
    results = [eps_sqnr(pipeline.unet, other.unet, scheduler, range(4), batch_size=size, **drawing) for size in (4, 3)]
    for one, two in zip(*results, strict=True):
        assert one.sqnr_db == pytest.approx(two.sqnr_db, abs=1e-3)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_inputs_that_calibrated_are_not_evaluated(name: str) -> None:
    pipeline = FAMILIES[name]()
    usual = evaluation_inputs(pipeline, FAMILIES[name](), 40)
    assert usual == condition_inputs(pipeline, "evaluation", 40)
    assert usual is not None
    used = [usual[0], usual[1]]
    left = evaluation_inputs(pipeline, marked(FAMILIES[name](), config={"conditions": used}), 40)
    assert left is not None
    assert len(left) == 40
    assert not set(map(str, left)) & set(map(str, used))
    with pytest.raises(ConfigError, match="every input of the evaluation split calibrated this model"):
        evaluation_inputs(pipeline, marked(FAMILIES[name](), config={"conditions": usual}), 40)


def test_inputs_of_ones_own_that_calibrated_leave_a_warning() -> None:
    pipeline, other = tiny_sd(), marked(tiny_sd(), config={"conditions": ["an ant"]}, sampler=None)
    sampler = short(pipeline)
    drawing: dict[str, Any] = {"samples": 3, "sampler": sampler, "batch_size": 3, "inputs": ["an ant", "a red apple"]}
    found = evaluate(pipeline, other, **drawing, resamples=2)
    assert found.conditions == ["an ant", "a red apple", "an ant"]
    assert "2 of 3 images were drawn with inputs that calibrated this model" in found.warnings


def test_a_text_encoder_of_ones_own_is_part_of_what_is_measured() -> None:
    pipeline, other = tiny_sd(), tiny_sd()
    for parameter in other.text_encoder.parameters():
        parameter.add_(0.05)
    drawing: dict[str, Any] = {"samples": 2, "sampler": short(pipeline), "inputs": ["a red apple"]}
    pairs = sample_pairs(pipeline, other, **drawing)
    assert (pairs.float_images - pairs.quantized_images).abs().max() > 1e-3


def test_the_usual_sampler_is_that_of_the_calibration() -> None:
    sampler = SamplerConfig(steps=7, spacing="uniform", guidance_scale=2.0)
    assert usual_sampler(marked(tiny_sd(), sampler=sampler.model_dump(mode="json"))) == sampler
    assert usual_sampler(tiny_sd()) == default_sampler(tiny_sd())
    assert usual_sampler(marked(tiny_sd(), sampler={"steps": 9, "spacing": "uniform", "eta": 0.0})).steps == 9


def test_inputs_and_pairs_together_are_refused() -> None:
    pipeline = tiny_sd()
    pairs = sample_pairs(pipeline, tiny_sd(), samples=2, sampler=short(pipeline))
    with pytest.raises(ConfigError, match="inputs: the images of `pairs` were drawn already"):
        evaluate(pipeline, tiny_sd(), samples=2, sampler=short(pipeline), pairs=pairs, inputs=["an ant"])


def test_prompts_stand_under_the_pairs_of_the_report(tmp_path: Path) -> None:
    evil = "an <b>ant</b>"
    tiny_sd().save_pretrained(tmp_path)
    prompts = {"calibration": ["at"], "evaluation": [evil]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    pipeline: Any = type(tiny_sd()).from_pretrained(tmp_path)
    drawing: dict[str, Any] = {"samples": 2, "sampler": short(pipeline)}
    pairs = sample_pairs(pipeline, rounded("sd"), **drawing)
    found = evaluate(pipeline, rounded("sd"), **drawing, pairs=pairs, resamples=2)
    assert found.conditions == [evil, evil]
    html = render_report(found, pairs.float_images, pairs.quantized_images, None)
    assert html.count('<p class="told">an &lt;b&gt;ant&lt;/b&gt;</p>') == 4  # two first pairs and two worst
    assert 'alt="seed 0: an &lt;b&gt;ant&lt;/b&gt;, float model"' in html
    assert "averaged down to 32x32" in html
