"""What the original implementations compute on seeded stand-in weights: their files, and our side of each row.

A fixture is a JSON file that lists the entries of an original checkpoint and their shapes, the YAML, inputs by shape,
and for every output its mean, norm and 64 values. Weights and inputs come from NumPy's PCG64 by name, so that the
checkpoint need not be stored. `tests/fixtures` holds the five architectures at a small width.

    row                              what is compared
    eps, eps_ema                     the denoiser at (x, t), its plain or its EMA weights
    eps_class                        the same with the class embedder in front
    decode, encode                   the first stage on z (VQ: nearest code first), and on image (VQ: before the
                                     codebook, KL: the mean)
    sample_final, ddim_quad_*        x_0 of the sampler from the noise x, and x half way
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import DiffusionPipeline
from torch import Tensor

from mezzotint.models.conditions import Conditions
from mezzotint.models.importing import import_checkpoint
from mezzotint.sampling.config import SamplerConfig
from mezzotint.sampling.guidance import guided_eps
from mezzotint.sampling.schedulers import make_scheduler

SMALL = Path(__file__).parent / "fixtures"
FORWARD_TOLERANCE, SAMPLER_TOLERANCE = 1e-5, 1e-4  # relative; random weights amplify in the samplers


@dataclass(frozen=True)
class Fixture:
    """One file; `data` is its content."""

    name: str
    data: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Fixture:
        return cls(path.stem, json.loads(path.read_text()))

    def entries(self) -> dict[str, Tensor]:
        """The state dict of the original model."""
        return {key: self.weight(key, shape) for key, shape in self.data["keys"].items()}

    def weight(self, key: str, shape: list[int]) -> Tensor:
        """float32: kernels scaled by 1 / sqrt(fan-in), norms near 1, biases near 0."""
        x = self._normal(key, shape)
        if len(shape) >= 2:
            return torch.from_numpy(x / np.float32(np.sqrt(prod(shape[1:]))))
        scaled = 1 + np.float32(0.1) * x if key.endswith("weight") else np.float32(0.05) * x
        return torch.from_numpy(np.asarray(scaled))

    def input(self, name: str) -> Tensor:
        """float32 unit normal draws of the input's shape; for `t` and `class_label` the int64 values."""
        value = self.data["inputs"][name]
        if name in ("t", "class_label"):
            return torch.tensor(value)
        return torch.from_numpy(self._normal(f"input:{name}", value))

    def _normal(self, name: str, shape: list[int]) -> Any:
        generator = np.random.Generator(np.random.PCG64([self.data["seed"], zlib.crc32(name.encode())]))
        return generator.standard_normal(tuple(shape), dtype=np.float32)

    def write(self, folder: Path, *, config: bool = True) -> Path:
        """Writes the checkpoint, and its YAML beside it; returns the checkpoint."""
        path = folder / f"{self.name}.ckpt"
        entries = self.entries()
        torch.save(entries if self.data["format"] == "ddim" else {"state_dict": entries}, path)
        if config:
            path.with_suffix(".yaml").write_text(yaml.safe_dump(self.data["config"]))
        return path

    def error(self, row: str, output: Tensor) -> float:
        """Relative error of `output`: that of its 64 values or of its norm, whichever is larger."""
        expected = self.data["outputs"][row]
        if list(output.shape) != expected["shape"]:
            raise ValueError(f"{self.name} {row}: expected {expected['shape']}, got {list(output.shape)}")
        output = output.detach().double().cpu().flatten()
        probe = torch.tensor(expected["probe"], dtype=torch.float64)
        off = (output[torch.tensor(expected["probe_index"])] - probe).norm() / probe.norm()
        return max(float(off), abs(float(output.norm()) / expected["norm"] - 1))


def tolerance(row: str) -> float:
    """The relative error that a row may have."""
    return FORWARD_TOLERANCE if row in ROWS else SAMPLER_TOLERANCE


@torch.no_grad()
def compute_rows(fixture: Fixture, checkpoint: Path, device: str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """(row, what we compute) for every output of the fixture, imported from `checkpoint`."""
    wanted = set(fixture.data["outputs"])
    for ema in (False, True):
        rows = {row for row in wanted if row.endswith("_ema") == ema}
        if not rows:
            continue
        pipeline = import_checkpoint(checkpoint, use_ema=ema).pipeline.to(device)
        yield from ((row, ROWS[row](fixture, pipeline)) for row in sorted(rows & ROWS.keys()))
        if rows - ROWS.keys():
            states = list(_trajectory(fixture, pipeline))
            finals = {"sample_final": states[-1], "ddim_quad_final": states[-1]}
            finals["ddim_quad_mid"] = states[len(states) // 2 - 1]
            yield from ((row, finals[row]) for row in sorted(rows - ROWS.keys()))


def _eps(fixture: Fixture, pipeline: DiffusionPipeline) -> Tensor:
    device = pipeline.unet.device
    context = [fixture.input("context").to(device)] if "context" in fixture.data["inputs"] else []
    return pipeline.unet(fixture.input("x").to(device), fixture.input("t").to(device), *context).sample


def _eps_class(fixture: Fixture, pipeline: DiffusionPipeline) -> Tensor:
    device = pipeline.unet.device
    context = pipeline.class_embedder(fixture.input("class_label").to(device))
    return pipeline.unet(fixture.input("x").to(device), fixture.input("t").to(device), context).sample


def _first_stage(pipeline: DiffusionPipeline) -> Any:
    return pipeline.components.get("vqvae") or pipeline.components["vae"]


def _decode(fixture: Fixture, pipeline: DiffusionPipeline) -> Tensor:
    stage = _first_stage(pipeline)
    return stage.decode(fixture.input("z").to(stage.device)).sample


def _encode(fixture: Fixture, pipeline: DiffusionPipeline) -> Tensor:
    stage = _first_stage(pipeline)
    encoded = stage.encode(fixture.input("image").to(stage.device))
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()


ROWS: dict[str, Callable[[Fixture, DiffusionPipeline], Tensor]] = {
    "eps": _eps,
    "eps_ema": _eps,
    "eps_class": _eps_class,
    "decode": _decode,
    "encode": _encode,
}


def _trajectory(fixture: Fixture, pipeline: DiffusionPipeline) -> Iterator[Tensor]:
    """x after every step of the fixture's sampler, from its noise."""
    drawn, device = fixture.data["sampler"], pipeline.unet.device
    spacing = {"quad": "quadratic"}.get(drawn.get("skip", ""), "uniform")
    config = SamplerConfig(kind=drawn["kind"], steps=drawn["steps"], spacing=spacing, eta=drawn["eta"])
    scheduler, scale = make_scheduler(pipeline, config), drawn.get("guidance_scale", 1.0)
    times = drawn.get("timesteps", drawn.get("timesteps_ascending"))
    assert sorted(scheduler.times) == times, f"{fixture.name}: our times are {sorted(scheduler.times)}, not {times}"
    conditions, past = _conditions(fixture, device), []
    x = fixture.input("x").to(device)
    for step in range(len(scheduler.times)):
        x = scheduler.advance(
            lambda x, t: guided_eps(pipeline.unet, x, t, conditions, scale), step, x, None, past
        ).x_prev
        yield x


def _conditions(fixture: Fixture, device: torch.device) -> Conditions | None:
    if "context" not in fixture.data["inputs"]:
        return None
    context, nothing = (fixture.input(name).to(device) for name in ("context", "uncond"))
    labels = [""] * len(context)
    return Conditions({"encoder_hidden_states": context}, {"encoder_hidden_states": nothing}, labels)
