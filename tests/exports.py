"""Tiny quantized pipelines and what they were exported to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline

from families import FAMILIES
from mezzotint.export import export_pipeline
from mezzotint.export.record import ExportRecord
from mezzotint.pipeline import quantize
from mezzotint.sampling.config import SamplerConfig

SETTINGS: dict[str, dict[str, Any]] = {
    "ddim": {"bits": "w8a8"},
    "sd": {"bits": "w4a8", "kind": "plms", "guidance_scale": 3.0, "vae_bits": "w8a8", "text_encoder_bits": "w8a8"},
}
SAMPLERS = {
    "ddim": SamplerConfig(steps=4, spacing="uniform"),
    "sd": SamplerConfig(steps=4, spacing="uniform", kind="plms", guidance_scale=3.0),
}


class Exported(NamedTuple):
    """A float pipeline, the quantized one, the folder it was exported to and the record there."""

    family: str
    floating: DiffusionPipeline
    quantized: DiffusionPipeline
    folder: Path
    record: ExportRecord


def export_tiny(family: str, folder: Path) -> Exported:
    """The tiny pipeline of `family`, quantized by rounding to nearest and exported to `folder` as ONNX."""
    floating = FAMILIES[family]()
    settings = {"recipe": "nearest", "steps": 4, "spacing": "uniform", "calib_size": 16, **SETTINGS[family]}
    quantized = quantize(floating, **settings)
    return Exported(family, floating, quantized, folder, export_pipeline(quantized, folder))
