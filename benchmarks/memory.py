"""Peak memory and time of calibrating a full-size Stable Diffusion v1 network, random weights, few iterations.

    python benchmarks/memory.py --json memory.json --cache-gb 30 --forward-batch 8

Memory does not depend on the weights nor on the iterations, so few iterations measure it. Time is measured per
trajectory step and per iteration and projected to the paper's settings (N, steps and iterations of
`mezzotint.recipes.paper`, batch size as here). The text encoder is a random stand-in of CLIP's width; the first stage
does not take part.

    gpu_gb     most that the allocator held, and of that what tensors took
    host_gb    most that the process had resident (maximum resident set size)
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import mezzotint
from mezzotint.models.importing.configs import read_config, unet_part
from mezzotint.pipeline import simulate
from mezzotint.recipes.paper import PAPER
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.defaults import SAMPLERS

PUBLISHED = Path(mezzotint.__file__).parent / "models" / "importing" / "published"
GB = 1e9


class Phases:
    """Says every phase as it begins, with the seconds so far."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()

    def start(self, phase: str, total: int) -> None:
        held = torch.cuda.max_memory_allocated() / GB if torch.cuda.is_available() else 0.0
        print(f"{time.perf_counter() - self.begun:7.1f} s  {phase} ({total}), {held:.1f} GB so far", flush=True)

    def advance(self, n: int = 1, **info: float | str) -> None:
        pass

    def finish(self) -> None:
        pass


def random_pipeline(width: float, device: str) -> StableDiffusionPipeline:
    """Stable Diffusion v1 with random weights; `width` scales its channels, for a trial on a small machine."""
    settings: dict[str, Any] = dict(unet_part(read_config(PUBLISHED / "sd-v1.yaml")).network.config)
    settings["block_out_channels"] = tuple(round(wide * width / 64) * 64 for wide in settings["block_out_channels"])
    tokenizer = mezzotint.load("sd-text").tokenizer
    words = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=settings["cross_attention_dim"])
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(settings).eval().requires_grad_(False)
    encoder = CLIPTextModel(words).eval().requires_grad_(False)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def projected_hours(results: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """Hours at the paper's N, steps and iterations; phases grow with what they are made of."""
    paper, steps = PAPER["sd"], SAMPLERS["sd"].steps
    seconds = results["seconds"]
    trajectories = paper.calib_size / options.calib_size * steps / options.steps
    learning = (
        seconds["reconstruct"] * paper.iters / options.iters
    )  # an upper bound: what is done once a unit grows too
    hours = {
        "record and select": (seconds["record"] + seconds["select"]) * trajectories / 3600,
        "fit": seconds["fit"] * paper.calib_size / options.calib_size / 3600,
        "reconstruct": learning / 3600,
    }
    return {**hours, "together": sum(hours.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--calib-size", type=int, default=32, help="trajectories; twice as many rows, with guidance")
    parser.add_argument("--steps", type=int, default=4, help="steps of the sampler")
    parser.add_argument("--iters", type=int, default=20, help="iterations a unit")
    parser.add_argument("--batch-size", type=int, default=4, help="rows in an iteration")
    parser.add_argument("--forward-batch", type=int, default=8, help="rows in a forward pass")
    parser.add_argument("--cache-gb", type=float, default=30.0)
    parser.add_argument("--cache-dtype", default="float32")
    parser.add_argument("--width", type=float, default=1.0, help="scale of the channels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit-gb", type=float, help="memory of the GPU that may be used; more is an error")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.limit_gb is not None:
        whole = torch.cuda.get_device_properties(options.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.limit_gb * GB / whole))
    pipeline = random_pipeline(options.width, options.device)
    config = make_config(
        "eda-dm",
        options.bits,
        family="sd",
        calib_size=options.calib_size,
        pilot_size=min(8, options.calib_size),
        steps=options.steps,
        iters=options.iters,
        batch_size=options.batch_size,
        forward_batch=options.forward_batch,
        cache_gb=options.cache_gb,
        cache_dtype=options.cache_dtype,
        drift_trajectories=2,
    )
    begun = time.perf_counter()
    simulation = simulate(pipeline, config, device=options.device, progress=Phases())
    units = len(simulation.results["units"])
    cuda = options.device.startswith("cuda")
    row = {
        "parameters": sum(p.numel() for p in pipeline.unet.parameters()),
        "device": torch.cuda.get_device_name() if cuda else options.device,
        "settings": {name: str(value) for name, value in vars(options).items()},
        "units": units,
        "gpu_gb": {
            "reserved": torch.cuda.max_memory_reserved() / GB,
            "allocated": torch.cuda.max_memory_allocated() / GB,
        }
        if cuda
        else None,
        "host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB,
        "seconds": {**simulation.results["seconds"], "together": time.perf_counter() - begun},
        "ms_per_iteration": 1e3
        * sum(unit["seconds"] for unit in simulation.results["units"])
        / (units * options.iters),
        "projected_hours": projected_hours(simulation.results, options),
    }
    print(json.dumps(row, indent=1))
    if options.json:
        options.json.write_text(json.dumps([row], indent=1))


if __name__ == "__main__":
    main()
