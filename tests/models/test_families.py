"""Every family is known by its parts, however the pipeline is called, and has the paper's sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMPipeline

from families import FAMILIES, tiny_ldm_kl, tiny_ldm_vq, tiny_sd
from mezzotint.errors import ModelError
from mezzotint.models.conditioning import conditioning_kind
from mezzotint.models.families import family_of, first_stage_name, model_folder
from mezzotint.sampling.defaults import default_sampler
from tiny import tiny_pipeline, tiny_text_unet

KINDS = {"ddim": "none", "ldm-vq": "none", "ldm-kl": "none", "ldm-class": "class", "sd": "text"}
PROTOCOLS = {
    "ddim": ("ddim", 100, "quadratic", 0.0, 1.0),
    "ldm-vq": ("ddim", 200, "uniform", 1.0, 1.0),
    "ldm-kl": ("ddim", 500, "uniform", 0.0, 1.0),
    "ldm-class": ("ddim", 20, "uniform", 0.0, 3.0),
    "sd": ("plms", 50, "uniform", 0.0, 7.5),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family_kind_and_protocol(name: str) -> None:
    pipeline = FAMILIES[name]()
    assert family_of(pipeline) == name
    assert conditioning_kind(pipeline) == KINDS[name]
    sampler = default_sampler(pipeline)
    assert tuple(sampler.model_dump().values()) == PROTOCOLS[name]


def test_a_missing_part_does_not_change_the_family() -> None:
    for make, part in ((tiny_ldm_vq, "vqvae"), (tiny_ldm_kl, "vae"), (tiny_sd, "text_encoder"), (tiny_sd, "vae")):
        pipeline: Any = make()
        family = family_of(pipeline)
        pipeline.register_modules(**{part: None})
        assert family_of(pipeline) == family


def test_parts_that_are_not_supported_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    strange: Any = DDIMPipeline(unet=tiny_text_unet(), scheduler=tiny_pipeline().scheduler)
    with pytest.raises(ModelError, match="DDIMPipeline is conditional in pixel space; expected a vae or a vqvae"):
        family_of(strange)
    pipeline: Any = tiny_pipeline()
    parts = {**pipeline.components, "movq": object()}
    monkeypatch.setattr(type(pipeline), "components", property(lambda _: parts))
    with pytest.raises(ModelError, match="DDIMPipeline: pipelines with a movq are not supported"):
        first_stage_name(pipeline)


def test_the_folder_is_where_a_pipeline_was_loaded_from(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    assert model_folder(pipeline) is None
    pipeline.save_pretrained(tmp_path)
    assert model_folder(DDIMPipeline.from_pretrained(tmp_path)) == tmp_path
