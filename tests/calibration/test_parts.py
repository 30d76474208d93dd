"""First stage and text encoder on integers: quantized whole, saved, loaded, and as good as they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import mezzotint
from families import tiny_ldm_class, tiny_ldm_vq, tiny_sd
from mezzotint.config import with_settings
from mezzotint.errors import ArtifactError, BitsError, ConfigError
from mezzotint.evaluation.cost import pipeline_sizes
from mezzotint.layers.int_base import IntLayer
from mezzotint.models.conditioning import encode_conditions
from mezzotint.models.families import family_of
from tiny import tiny_pipeline

SMALL: dict[str, Any] = {"steps": 2, "calib_size": 2, "forward_batch": 8}


def quantized(pipeline: Any, **parts: str) -> Any:
    made = mezzotint.make_config("nearest", "w8a8", family=family_of(pipeline), **SMALL, **parts)
    config = with_settings(made, {"ranges.candidates": 12})  # most of the time is in the search
    return mezzotint.quantize(pipeline, config=config, device="cpu")


@pytest.fixture(scope="module")
def text() -> Any:
    return quantized(tiny_sd(), vae_bits="w8a8", text_encoder_bits="w8a8")


def float_products(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def test_every_product_of_both_parts_is_on_integers(text: Any) -> None:
    for part in (text.vae, text.text_encoder):
        assert float_products(part) == []
        assert sum(isinstance(module, IntLayer) for module in part.modules()) > 10


def test_outputs_lose_as_little_as_the_record_says(text: Any) -> None:
    parts = text.unet.quantization.parts
    assert set(parts) == {"vae", "text_encoder"}
    for record in parts.values():
        assert record.results["sqnr_db"] > 20
    given = encode_conditions(tiny_sd(), ["a red apple"])
    taken = encode_conditions(text, ["a red apple"])
    assert given is not None
    assert taken is not None
    expected, found = given.cond["encoder_hidden_states"], taken.cond["encoder_hidden_states"]
    sqnr = 10 * torch.log10(expected.square().sum() / (expected - found).square().sum())
    assert float(sqnr) > 15


def test_an_artifact_of_all_parts_draws_the_same_images_after_loading(text: Any, tmp_path: Path) -> None:
    mezzotint.save_quantized(text, tmp_path / "text")
    again: Any = mezzotint.load(tmp_path / "text")
    drawing: dict[str, Any] = {"sampler": mezzotint.SamplerConfig(steps=2, spacing="uniform")}
    told = encode_conditions(text, ["a red apple"])
    told_again = encode_conditions(again, ["a red apple"])
    assert told is not None
    assert told_again is not None
    assert_close(told_again.cond, told.cond, rtol=0, atol=0)
    first = mezzotint.sample(text, [3], conditions=told, **drawing)
    assert_close(mezzotint.sample(again, [3], conditions=told_again, **drawing), first, rtol=0, atol=0)
    assert not list((tmp_path / "text").glob("vae/diffusion*"))
    assert not list((tmp_path / "text").glob("text_encoder/model*"))


def test_a_damaged_part_is_named(text: Any, tmp_path: Path) -> None:
    mezzotint.save_quantized(text, tmp_path / "text")
    path = tmp_path / "text" / "vae" / "quantized.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"vae/quantized.safetensors: leaf .*: its bytes were altered"):
        mezzotint.load(tmp_path / "text")


@pytest.mark.parametrize("make", [tiny_ldm_vq, tiny_ldm_class])
def test_the_codebook_stays_float_and_the_sizes_shrink(make: Any) -> None:
    whole = make()
    alone, both = quantized(whole), quantized(whole, vae_bits="w8a8")
    assert both.vqvae.quantize.embedding.weight.dtype == torch.float32
    assert any("quantize.embedding" in name for name in both.unet.quantization.parts["vqvae"].float_modules)
    assert pipeline_sizes(whole, both).quantized < pipeline_sizes(whole, alone).quantized


def test_parts_that_are_not_there_are_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="vae_bits: DDIMPipeline has no first stage"):
        quantized(tiny_pipeline(), vae_bits="w8a8")
    with pytest.raises(ConfigError, match="text_encoder_bits: LDMPipeline has no text encoder"):
        quantized(tiny_ldm_vq(), text_encoder_bits="w8a8")
    with pytest.raises(BitsError, match="weights take 2 to 8 bits"):
        quantized(tiny_ldm_vq(), vae_bits="w9a8")


def test_inspect_lists_the_parts_and_what_the_whole_pipeline_weighs(text: Any, tmp_path: Path) -> None:
    mezzotint.save_quantized(text, tmp_path / "text")
    found = mezzotint.inspect(mezzotint.load(tmp_path / "text"))
    assert set(found["parts"]) == {"vae", "text_encoder"}
    for name, part in found["parts"].items():
        assert part["bytes"] == (tmp_path / "text" / name / "quantized.safetensors").stat().st_size
        assert sum(part["kernels"].values()) == part["layers"] > 10
    assert found["totals"]["pipeline_bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "text").rglob("*.safetensors")
    )
