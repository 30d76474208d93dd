"""Post-training quantization of diffusion models: EDA-DM, computed on integers.

    pipeline = mezzotint.load("ddim-emoji")
    quantized = mezzotint.quantize(pipeline, bits="w4a8")
    mezzotint.save_quantized(quantized, "emoji-w4a8")
    images = mezzotint.sample(mezzotint.load("emoji-w4a8"), seeds=range(16))

Names are imported when they are first used: `import mezzotint`, and with it `mezzotint --help`, does not wait for
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mezzotint.version import __version__

if TYPE_CHECKING:
    from mezzotint.artifact import Manifest, load_quantized, save_quantized
    from mezzotint.config import QuantizeConfig
    from mezzotint.errors import MezzotintError
    from mezzotint.evaluation.evaluate import evaluate
    from mezzotint.inspection import inspect
    from mezzotint.loading import load
    from mezzotint.models.zoo import list_models
    from mezzotint.optimization import optimize
    from mezzotint.pipeline import quantize
    from mezzotint.recipes.registry import make_config
    from mezzotint.sampling.config import SamplerConfig
    from mezzotint.sampling.trajectory import sample

__all__ = [
    "Manifest",
    "MezzotintError",
    "QuantizeConfig",
    "SamplerConfig",
    "__version__",
    "evaluate",
    "inspect",
    "list_models",
    "load",
    "load_quantized",
    "make_config",
    "optimize",
    "quantize",
    "sample",
    "save_quantized",
]

_HOMES = {
    "Manifest": "mezzotint.artifact",
    "MezzotintError": "mezzotint.errors",
    "QuantizeConfig": "mezzotint.config",
    "SamplerConfig": "mezzotint.sampling.config",
    "evaluate": "mezzotint.evaluation.evaluate",
    "inspect": "mezzotint.inspection",
    "list_models": "mezzotint.models.zoo",
    "load": "mezzotint.loading",
    "load_quantized": "mezzotint.artifact",
    "make_config": "mezzotint.recipes.registry",
    "optimize": "mezzotint.optimization",
    "quantize": "mezzotint.pipeline",
    "sample": "mezzotint.sampling.trajectory",
    "save_quantized": "mezzotint.artifact",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mezzotint' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
