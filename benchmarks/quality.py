"""Quality of quantized models against their float model, cell by cell: the table of the README.

    python benchmarks/quality.py --model ddim-emoji --recipes nearest,eda-dm --bits w8a8,w4a8,w4a4 --json quality.json
    python benchmarks/quality.py --model sd-text --bits w8a8,w4a8 --samples 512 --batch-size 64 --json sd-text.json

Any model will do, of the zoo or of one's own. It is calibrated and drawn with the sampler of its family (steps,
guidance, PLMS or DDIM: `mezzotint.sampling.defaults`) unless an option says otherwise; prompts and classes are of the
evaluation split, image n the same in every cell.

Every cell calibrates a recipe at a bit setting and draws images from the same seeds as the float model, with the
simulated network (float arithmetic on grid values: what the integer network computes, up to the last bits of a
float32 sum). The file is a JSON array with one row a cell; it is rewritten after each, and cells it already holds are
not run again.

    sqnr_db         mean over ten evenly chosen steps of the float trajectory; both networks get the same rows: x_t, and
                    with guidance x_t with and without its condition
    psnr_pooled_db  one mean squared error over all images, [-1, 1]
    psnr_mean_db    mean over images of each image's PSNR
    fd              Frechet distance to the float model's images in 64 PCA coordinates of the training images and 3x8x8
                    pooled pixels, of the images averaged down to 32x32 where they are larger
    fd_train        the same to the training images, where the model ships their statistics; fd_train_float is what the
                    float model's images have
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from mezzotint.config import QuantizeConfig, validated
from mezzotint.errors import ConfigError
from mezzotint.evaluation.evaluate import compare_pairs, compare_sets
from mezzotint.evaluation.features import basis_for, train_statistics
from mezzotint.evaluation.pictures import paired_grid, write_png
from mezzotint.evaluation.steps import eps_sqnr, mean_sqnr, measured_steps
from mezzotint.loading import load
from mezzotint.models.conditioning import condition_inputs, encode_conditions
from mezzotint.models.conditions import Conditions
from mezzotint.models.denoiser import network_of, sample_shape
from mezzotint.models.families import family_of, model_folder
from mezzotint.pipeline import simulate, with_network
from mezzotint.recipes.registry import make_config
from mezzotint.sampling.schedulers import make_scheduler
from mezzotint.sampling.trajectory import sample

SQNR_TRAJECTORIES = 64
PICTURED, PICTURE_SIDE = 12, 96  # images in a picture, and about how many pixels wide each is shown
KEY = ("model", "recipe", "bits", "iters", "calib_size", "samples", "seed", "variant")


def main() -> None:
    options = arguments()
    rows: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    pipeline = load(options.model)
    pipeline.to(options.device)
    conditions = encode_conditions(pipeline, condition_inputs(pipeline, "evaluation", options.samples))
    references: dict[str, torch.Tensor] = {}
    for cell in cells(pipeline, options):
        if any(all(row[k] == cell[k] for k in KEY) for row in rows):
            print(f"{label(cell)}: in {options.json} already", flush=True)
            continue
        family = family_of(pipeline)
        config = make_config(cell["recipe"], cell["bits"], options.preset, family=family, **changes(cell, options))
        config = with_settings(config, options.set)
        sampler_key = config.sampler.model_dump_json()
        if sampler_key not in references:
            references[sampler_key] = images_of(pipeline, config, conditions, options)
        rows.append({**cell, **measure(pipeline, config, references[sampler_key], conditions, options)})
        write(rows, options.json)
        print(summary(rows[-1]), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ddim-emoji", help="zoo name or diffusers folder")
    parser.add_argument("--recipes", default="nearest,eda-dm", help="comma-separated")
    parser.add_argument("--bits", default="w8a8,w4a8,w4a4", help="comma-separated")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--iters", type=int, help="iterations a unit (default: the recipe's)")
    parser.add_argument("--calib-size", type=int, help="calibration samples (default: the recipe's)")
    parser.add_argument("--steps", type=int, help="sampler steps (default: the family's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the family's)")
    parser.add_argument("--samples", type=int, default=2048, help="images compared")
    parser.add_argument("--seeds", default="1234", help="seeds of the calibration, comma-separated")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PART.OPTION=VALUE", help="any option of the config"
    )
    parser.add_argument("--variant", default="", help="name of this setting in the rows")
    parser.add_argument("--batch-size", type=int, default=512, help="images sampled at once")
    parser.add_argument("--forward-batch", type=int, default=256, help="rows in a calibration forward pass")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each cell: float above, quantized below")
    parser.add_argument("--json", type=Path, default=Path("quality.json"))
    return parser.parse_args()


def cells(pipeline: DiffusionPipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for seed in options.seeds.split(","):
        for bits in options.bits.split(","):
            for recipe in options.recipes.split(","):
                config = make_config(recipe, bits, options.preset, family=family_of(pipeline))
                iters = (options.iters or config.reconstruction.iters) if config.reconstruction else 0
                found.append(
                    {
                        "model": Path(options.model).name,
                        "recipe": recipe,
                        "bits": bits,
                        "iters": iters,
                        "calib_size": options.calib_size or config.selection.calib_size,
                        "samples": options.samples,
                        "seed": int(seed),
                        "variant": options.variant,
                    }
                )
    return found


def changes(cell: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    changed = {
        "calib_size": cell["calib_size"],
        "seed": cell["seed"],
        "steps": options.steps,
        "guidance_scale": options.guidance,
        "forward_batch": options.forward_batch,
        "cache_gb": 40.0 if options.device == "cuda" else None,
    }
    return {**changed, "iters": cell["iters"]} if cell["iters"] else changed


def with_settings(config: QuantizeConfig, settings: list[str]) -> QuantizeConfig:
    """`config` with PART.OPTION=VALUE applied; VALUE is JSON, or text."""
    data = config.model_dump()
    for setting in settings:
        name, _, text = setting.partition("=")
        *parents, leaf = name.split(".")
        part = data
        for parent in parents:
            if part.get(parent) is None:
                raise ConfigError(f"--set {setting}: recipe {config.recipe!r} has no {parent}")
            part = part[parent]
        try:
            part[leaf] = json.loads(text)
        except json.JSONDecodeError:
            part[leaf] = text
    return validated(data)


def images_of(
    pipeline: DiffusionPipeline, config: QuantizeConfig, conditions: Conditions | None, options: argparse.Namespace
) -> torch.Tensor:
    return sample(
        pipeline,
        list(range(options.samples)),
        sampler=config.sampler,
        batch_size=options.batch_size,
        conditions=conditions,
        device=options.device,
    )


def measure(
    pipeline: DiffusionPipeline,
    config: QuantizeConfig,
    reference: torch.Tensor,
    conditions: Conditions | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One cell's figures."""
    started = time.perf_counter()
    simulation = simulate(pipeline, config, device=options.device)
    calibrated = time.perf_counter()
    quantized = with_network(pipeline, simulation.network)
    images = images_of(quantized, config, conditions, options)
    trajectories = range(min(SQNR_TRAJECTORIES, options.samples))
    steps = eps_sqnr(
        network_of(pipeline),
        simulation.network,
        make_scheduler(pipeline, config.sampler),
        trajectories,
        shape=sample_shape(pipeline),
        steps=measured_steps(config.sampler.steps),
        batch_size=min(SQNR_TRAJECTORIES, options.batch_size),
        conditions=None if conditions is None else conditions.rows(slice(0, len(trajectories))),
        guidance_scale=config.sampler.guidance_scale,
    )
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
        scale = max(1, PICTURE_SIDE // images.shape[-1])
        name = f"{Path(options.model).name}-{config.recipe}-{config.bits}-{config.seed}.png"
        write_png(paired_grid(reference[:PICTURED], images[:PICTURED]), options.pictures / name, scale)
    pairs, folder = compare_pairs(reference, images), model_folder(pipeline)
    distance = compare_sets(reference, images, basis_for(folder, reference), train=train_statistics(folder))
    units = simulation.results["units"]
    learning = sum(unit["seconds"] for unit in units)
    return {
        "sqnr_db": mean_sqnr(steps),
        "sqnr_steps_db": [row.sqnr_db for row in steps],
        "psnr_pooled_db": pairs.psnr_pooled.value,
        "psnr_mean_db": pairs.psnr_mean.value,
        "ssim": None if pairs.ssim is None else pairs.ssim.value,
        "fd": distance.fd.value,
        "fd_interval": [distance.fd.low, distance.fd.high],
        "fd_train": None if distance.train is None else distance.train.quantized_fd,
        "fd_train_float": None if distance.train is None else distance.train.float_fd,
        "features": distance.features,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        "seconds": {**simulation.results["seconds"], "calibrate": calibrated - started},
        "ms_per_iteration": 1e3 * learning / (len(units) * config.reconstruction.iters) if units else None,  # type: ignore[union-attr]
        "undecided": sum(unit["undecided"] for unit in units) / len(units) if units else None,
        "units": units,
        "counts": simulation.results["selection"]["counts"],
        "config": config.model_dump(mode="json"),
    }


def write(rows: list[dict[str, Any]], path: Path) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(rows, indent=1))
    os.replace(beside, path)


def label(cell: dict[str, Any]) -> str:
    return f"{cell['model']} {cell['recipe']:>16} {cell['bits']} seed {cell['seed']} {cell['variant']}"


def summary(row: dict[str, Any]) -> str:
    speed = "" if row["ms_per_iteration"] is None else f", {row['ms_per_iteration']:.2f} ms an iteration"
    trained = "" if row["fd_train"] is None else f", to training {row['fd_train']:.3f} ({row['fd_train_float']:.3f})"
    return (
        f"{label(row)}: SQNR {row['sqnr_db']:.2f} dB, "
        f"PSNR pooled {row['psnr_pooled_db']:.2f} mean {row['psnr_mean_db']:.2f} dB, "
        f"FD {row['fd']:.3f}{trained}, {row['seconds']['calibrate']:.0f} s{speed}"
    )


if __name__ == "__main__":
    main()
