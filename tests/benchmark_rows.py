"""Rows as a run would have written them, without running anything."""

from __future__ import annotations

from typing import Any

from mezzotint.benchmark.row import Row
from mezzotint.evaluation.cost import FixedCost, Sizes
from mezzotint.evaluation.layers import LayerSqnr
from mezzotint.evaluation.result import Versions
from mezzotint.evaluation.steps import StepSqnr
from mezzotint.manifest import BaseInfo
from mezzotint.recipes.registry import make_config

SELECTION = {
    "steps": [0, 1, 2],
    "times": [800, 198, 0],
    "density": [2.0, 1.0, 0.0],
    "variety": [100.0, 300.0, 900.0],
    "score": [1.0, 0.8, 1.2],
    "counts": [11, 9, 12],
    "radius": 2.5,
}


def unit(name: str, nearest: float, learned: float) -> dict[str, Any]:
    kept = "learned" if learned < nearest else "nearest"
    losses = {"nearest_loss": nearest, "learned_loss": learned}
    return {"name": name, "kind": "layer", **losses, "kept": kept, "undecided": 0.1, "seconds": 2.0}


def make_cost(quantized: int = 250_000, beside: int = 0) -> FixedCost:
    """A network of 250,000 parameters, 2 million multiply-accumulates, 8 by 8 bits, with so many float bytes beside."""
    network = Sizes(fp32=1_000_000, fp16=500_000, quantized=quantized)
    whole = Sizes(fp32=1_000_000 + beside, fp16=500_000 + beside // 2, quantized=quantized + beside)
    macs = 2_000_000
    return FixedCost(
        network=network,
        pipeline=whole,
        parameters=250_000,
        macs=macs,
        float_bops=macs * 1024,
        quantized_bops=macs * 64,
    )


def make_row(recipe: str = "eda-dm", bits: str = "w4a8", seed: int = 1, fd: float = 1.25, **changes: Any) -> Row:
    """A row with a figure for everything; `changes` go over it."""
    steps = [StepSqnr(step=s, t=t, sqnr_db=30.0 - s) for s, t in ((0, 800), (1, 198), (2, 0))]
    learns, calib_size = recipe not in ("nearest", "nearest-minmax", "ptq4dm"), changes.get("calib_size", 32)
    iters = changes.get("iters", 400) if learns else 0
    options = {"seed": seed, "calib_size": calib_size, "iters": iters or None}
    fields: dict[str, Any] = {
        "model": "emoji",
        "recipe": recipe,
        "bits": bits,
        "iters": iters,
        "calib_size": calib_size,
        "samples": 5000,
        "seed": seed,
        "variant": "",
        "sqnr_db": 29.0,
        "sqnr_steps_db": [step.sqnr_db for step in steps],
        "steps": steps,
        "psnr_pooled_db": 24.5,
        "psnr_mean_db": 27.25,
        "psnr_interval_db": (27.0, 27.5),
        "ssim": 0.9,
        "fd": fd,
        "fd_interval": (fd - 0.1, fd + 0.1),
        "fd_train": 70.5,
        "fd_train_float": 70.0,
        "features": "64 PCA coordinates",
        "counts": [11, 9, 12],
        "selection": SELECTION,
        "units": [unit("conv_in", 0.02, 0.005), unit("mid_block.attentions.0", 1e-3, 2e-3)] if learns else [],
        "layers": [LayerSqnr(name="conv_out", sqnr_db=12.5), LayerSqnr(name="conv_in", sqnr_db=22.0)],
        "undecided": 0.05,
        "ms_per_iteration": 1.5,
        "cost": make_cost(),
        "calls": 100,
        "seconds": {"calibrate": 30.0, "sample": 10.0},
        "device": "TEST GPU",
        "config": make_config(recipe, bits, **options).model_dump(mode="json"),
        "base": BaseInfo(name="emoji", sha256="ab" * 32, licence="CC-BY-4.0"),
        "image_seeds": (0, 4999),
        "versions": Versions(mezzotint="0.1", torch="2.13", diffusers="0.42", python="3.12"),
        "created": "2026-01-02T03:04:05+00:00",
        "command": "mezzotint bench-quality",
    }
    return Row(**{**fields, **changes})
