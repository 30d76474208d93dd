"""One `load` for float and quantized models.

    mezzotint.loading.load -> models.load      float pipelines
                           -> artifact         folders with a manifest.json

Quantized models are built on layers and kernels, which `models` must not import, so the choice is made here, above
both.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from mezzotint.errors import ConfigError
from mezzotint.models import load as float_models


def load(
    model: str | Path | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusionPipeline:
    """The pipeline `model`, ready to sample.

    Args:
        model: a name of the zoo (None is the default model), a diffusers folder, the folder of a quantized model, an
            original checkpoint (a file), or an id on the Hugging Face hub.
        dtype: of a float model; quantized models compute in float32 around their integers.

    Raises:
        ModelError: there is no such model, or no denoiser in it.
        ArtifactError: a quantized model that is truncated, altered or from a later version.
        ConfigError: the device cannot be used, or `dtype` was given for a quantized model.
    """
    folder = float_models.local_folder(model)
    if folder is None or not (folder / float_models.ARTIFACT_MANIFEST).is_file():
        return float_models.load(model, device=device, dtype=dtype)
    if dtype != torch.float32:
        raise ConfigError(f"dtype: {folder} is a quantized model and computes in float32, got {dtype}")
    from mezzotint.artifact import load_quantized  # above: kernels are imported only by those who need them

    return load_quantized(folder, device=float_models.check_device(device))
