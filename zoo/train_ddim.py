"""Train the embedded pixel-space DDIM model on the rendered emoji and write it as a diffusers folder.

The noise-prediction objective of Ho et al., "Denoising Diffusion Probabilistic Models", eq. 14, unweighted:

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,      abar_t = prod_{s <= t} (1 - beta_s)                      (1)
    loss = mean (eps_theta(x_t, t) - eps)^2                                                                      (2)

    x_0      float32 [batch, 3, 32, 32]   image in [-1, 1]
    t        int64   [batch]              timestep, 0 .. 999; beta_t runs linearly from 1e-4 to 0.02
    eps      float32 [batch, 3, 32, 32]   unit normal

The network is the CIFAR-10 one of that paper at base width 48 (5.0 M parameters). Two things differ: t is drawn
stratified over the batch (one per 1000/batch wide bin), which lowers the variance of (2) at no cost, and the
learning rate follows the *time* used, not the steps, so that a run of `--minutes` always ends fully decayed.

Resumable: the checkpoint holds weights, average, optimizer, generators and the time used; the same command goes on.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor, nn
from training import (
    HERE,
    Run,
    Settings,
    describe_device,
    draw_batch,
    draw_timesteps,
    fit,
    load_images,
    pick_device,
    to_float,
    write_grid,
)

UNET = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (48, 96, 96, 96),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "act_fn": "silu",
    "attention_head_dim": None,
    "norm_num_groups": 16,
    "norm_eps": 1e-6,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": False,  # the x_0 read off the noisiest steps is a poor guess; clipping it makes samples dark
    "set_alpha_to_one": True,
    "steps_offset": 0,
}


def noise_loss(unet: nn.Module, alphas: Tensor, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Equation (2), one value per image: float32 [batch]."""
    a = alphas[t][:, None, None, None]
    x_t = a.sqrt() * x + (1 - a).sqrt() * eps
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        prediction = unet(x_t, t, return_dict=False)[0]
    return (prediction.float() - eps).square().flatten(1).mean(1)


@torch.no_grad()
def measure_loss(unet: nn.Module, alphas: Tensor, images: Tensor, *, seed: int = 1, repeats: int = 16) -> float:
    """Mean of (2) over `images`, unmirrored, each with `repeats` stratified timesteps; the noise depends on `seed`."""
    generator = torch.Generator(images.device).manual_seed(seed)
    total = 0.0
    for image in images.split(1024):
        for _ in range(repeats):
            x = to_float(image)
            t = draw_timesteps(len(x), len(alphas), generator)
            eps = torch.randn(x.shape, generator=generator, device=x.device)
            total += noise_loss(unet, alphas, x, t, eps).sum().item()
    return total / (len(images) * repeats)


def export(average: dict[str, Tensor], out: Path) -> None:
    """Write the averaged weights, float16, as a DDIMPipeline folder."""
    averaged = UNet2DModel(**UNET)
    averaged.load_state_dict(average)
    DDIMPipeline(averaged.half(), DDIMScheduler(**SCHEDULER)).save_pretrained(out)


def sample_grid(folder: Path, device: torch.device, path: Path, *, rows: int = 8, steps: int = 100) -> None:
    """Write a PNG of rows x rows DDIM samples of the model in `folder`, computed in float32; seed 0."""
    pipe = DDIMPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(desc="sample", mininterval=5)
    generator = torch.Generator().manual_seed(0)
    images = pipe(rows * rows, generator=generator, num_inference_steps=steps, output_type="np").images
    write_grid((images * 255).round().astype(np.uint8), rows, path, enlarge=3)


def ddim_losses(run: Run, forward: nn.Module, images: Tensor, flippable: Tensor, alphas: Tensor) -> dict[str, Tensor]:
    """Equation (2) on a new batch; `forward` is the network, or its compiled form."""
    x = draw_batch(images, flippable, run.settings.batch, run.generator)
    t = draw_timesteps(run.settings.batch, len(alphas), run.generator)
    eps = torch.randn(x.shape, generator=run.generator, device=x.device)
    x = x.contiguous(memory_format=torch.channels_last)
    return {"loss": noise_loss(forward, alphas, x, t, eps).mean()}


def main(
    minutes: Annotated[float, typer.Option(help="Wall clock of the training, compiling included.")] = 8.0,
    data: Annotated[Path, typer.Option(help="The npz of zoo/render.py.")] = HERE / "data" / "emoji-32.npz",
    out: Annotated[Path, typer.Option(help="Folder for the model, its log and its samples.")] = HERE / "runs" / "ddim",
    checkpoint: Annotated[Path, typer.Option(help="Resumed if it exists.")] = HERE / "runs" / "ddim.pt",
    batch: Annotated[int, typer.Option(help="Images per step.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the weights and of every draw.")] = 0,
    compile: Annotated[bool, typer.Option(help="Use torch.compile, else a CUDA graph.")] = True,
    grid: Annotated[int, typer.Option(help="The sample grid's side, in images.")] = 8,
) -> None:
    """Train, export and sample; the same command again resumes from the checkpoint."""
    device = pick_device()
    torch.set_float32_matmul_precision("high")
    settings = Settings(minutes=minutes, batch=batch, seed=seed)
    splits, flippable = load_images(data, device, settings.groups)
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
    torch.manual_seed(seed)
    run = Run(UNet2DModel(**UNET), settings, device)
    forward = torch.compile(run.module) if compile else run.module
    out.mkdir(parents=True, exist_ok=True)
    print(f"{sum(p.numel() for p in run.module.parameters())} parameters, {len(splits['train'])} images, {device}")
    fit(
        run,
        lambda run: ddim_losses(run, forward, splits["train"], flippable, alphas),
        checkpoint=checkpoint,
        export=lambda: export(run.averaged(), out),
        graph=not compile,
    )

    every = len(splits["train"]) // len(splits["held_out"])  # as many training images as held-out ones
    measured = {"train": splits["train"][::every], "held_out": splits["held_out"]}
    averaged = DDIMPipeline.from_pretrained(out, dtype=torch.float32).unet.to(device)
    report = {
        "settings": asdict(settings),
        "device": describe_device(device),
        "torch": torch.__version__,
        "images": {name: len(images) for name, images in splits.items()},
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        "loss": {name: measure_loss(averaged, alphas, images) for name, images in measured.items()},
        "log": run.log,
    }
    assert all(math.isfinite(value) for value in report["loss"].values())
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print({key: value for key, value in report.items() if key != "log"})
    sample_grid(out, device, out / "samples.png", rows=grid)


if __name__ == "__main__":
    typer.run(main)
