"""Pictures from the integer network on a GPU against those of the simulated network, same seeds.

    python benchmarks/gpu_images.py --json images.json

For every model of the zoo, W8A8 and W4A8: the network is quantized (`nearest`, few calibration samples: the kernels do
not care), then the family's sampler draws the same seeds in several ways:

    float        the float model in float32
    half         the float model under bfloat16 autocast: what two-byte activations cost without any quantization
    simulated    quantized, float32 arithmetic on grid values
    deployed     the same network as `mezzotint.optimize` runs it on this GPU: Triton kernels, bfloat16 between products
                 and in attention
    codes        deployed, with attention on int8 codes, as the model was calibrated
    exact        codes, with float32 between products: the integer model as it is defined

PSNR is of pooled errors on [-1, 1], "shift" the mean of each channel minus that of the simulated pictures. A row holds
if deployed lies nearer to simulated than simulated to float: the GPU's arithmetic then costs less than the quantization
that it computes. "half" is there to compare with: it has no codes that a rounding can tip.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch

import mezzotint
from mezzotint.evaluation.paired import mse_per_image, psnr_pooled
from mezzotint.layers.swap import to_integer
from mezzotint.models.conditioning import condition_inputs, encode_conditions
from mezzotint.models.families import family_of
from mezzotint.optimization import optimize
from mezzotint.pipeline import simulate, with_network
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.trajectory import sample

WAYS: dict[str, dict[str, str]] = {
    "deployed": {},
    "codes": {"attention": "int8"},
    "exact": {"attention": "int8", "activations": "fp32"},
}
MODELS = "ddim-emoji,ldm4-uncond,ldm8-uncond,ldm4-class,sd-text"


def decibels(reference: torch.Tensor, images: torch.Tensor) -> float:
    """PSNR of all errors together."""
    return psnr_pooled(mse_per_image(reference, images))


def rows_of(name: str, settings: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each bit setting of the model called `name`."""
    floating = mezzotint.load(name)
    floating.to("cuda")
    told = condition_inputs(floating, "evaluation", options.images)
    conditions = encode_conditions(floating, told)
    rows, drawn = [], {}
    for bits in settings:
        config = make_config("nearest", bits, family=family_of(floating), calib_size=64, pilot_size=16)
        config = config.model_copy(update={"forward_batch": options.images})
        config = config.model_copy(update={"drift_trajectories": options.drift})
        if options.steps:
            update = {"steps": options.steps}
            config = config.model_copy(update={"sampler": config.sampler.model_copy(update=update)})

        def draw(pipeline: Any, config: Any = config) -> torch.Tensor:
            how: dict[str, Any] = {"sampler": config.sampler, "conditions": conditions, "device": "cuda"}
            return sample(pipeline, range(options.images), batch_size=options.images, **how)

        if not drawn:
            drawn["float"] = draw(floating)
            with torch.autocast("cuda", torch.bfloat16):
                drawn["half"] = draw(floating)
        network = simulate(floating, config, device="cuda").network
        simulated = draw(with_network(floating, network))
        row = {"model": name, "bits": bits, "images": options.images, "steps": config.sampler.steps}
        row |= {
            "simulated_to_float_db": decibels(drawn["float"], simulated),
            "half_to_float_db": decibels(drawn["float"], drawn["half"]),
        }
        for way, how in WAYS.items():
            integer = with_network(floating, to_integer(copy.deepcopy(network).cpu()).cuda())
            optimize(integer, **how)
            images = draw(integer)
            row |= {
                f"{way}_to_simulated_db": decibels(simulated, images),
                f"{way}_to_float_db": decibels(drawn["float"], images),
                f"{way}_shift": [round(v, 4) for v in (images - simulated).mean((0, 2, 3)).tolist()],
            }
        row["holds"] = row["deployed_to_simulated_db"] > row["simulated_to_float_db"]
        print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS, help="commas between them")
    parser.add_argument("--bits", default="w8a8,w4a8", help="commas between them")
    parser.add_argument("--drift", type=int, default=0, help="trajectories of the output correction (default: none)")
    parser.add_argument("--images", type=int, default=16, help="seeds 0 to IMAGES - 1")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the family's)")
    parser.add_argument("--json", type=Path, help="write the rows here, a JSON array")
    options, rows = parser.parse_args(), []
    with torch.no_grad():
        for name in options.models.split(","):
            rows += rows_of(name, options.bits.split(","), options)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
