"""Copy a trained model into the package: weights, configs, log, and a grid of samples drawn from what was copied."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DDIMScheduler
from features import EMBEDDED
from train_ddim import HERE, SCHEDULER, sample_grid

FILES = ("model_index.json", "training.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors")


def main(
    run: Annotated[Path, typer.Option(help="Folder that zoo/train_ddim.py wrote.")] = HERE / "runs" / "ddim",
    out: Annotated[Path, typer.Option(help="Folder of the embedded model.")] = EMBEDDED,
    rows: Annotated[int, typer.Option(help="Side of the sample grid, in images.")] = 8,
    steps: Annotated[int, typer.Option(help="DDIM steps of the samples.")] = 50,
) -> None:
    """Fill the embedded model's folder; run zoo/features.py afterwards."""
    for name in FILES:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, out / name)
    DDIMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    sample_grid(out, torch.device("cpu"), out / "samples.png", rows=rows, steps=steps)
    report = json.loads((out / "training.json").read_text())
    print({key: value for key, value in report.items() if key != "log"})


if __name__ == "__main__":
    typer.run(main)
