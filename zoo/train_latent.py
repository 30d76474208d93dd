"""Train a small latent diffusion model on the rendered emoji: one of the four latent families of the paper.

The objective is that of zoo/train_ddim.py, on latents of a first stage (Rombach et al., "High-Resolution Image
Synthesis with Latent Diffusion Models", equations 2 and 3):

    z_0 = scaling_factor * encode(x),    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps                           (1)
    loss = mean (eps_theta(z_t, t, c) - eps)^2                                                                   (2)

    model        pixels  first stage  condition c                                   like
    ldm4-uncond  64      vq-f4        none                                          LDM-4, LSUN-Bedroom
    ldm8-uncond  128     kl-f8        none                                          LDM-8, LSUN-Church
    ldm4-class   64      vq-f4        a row of a class table, [batch, 1, 64]        LDM-4, ImageNet
    sd-text      128     kl-f8        text encoder's states, [batch, 24, 128]       Stable Diffusion v1

    z_0, eps     float32 [batch, 3 or 4, 16, 16]

Latents are computed once: of VQ before the codebook, of KL the means; with the mirrored drawings beside the others. In
10 % of the draws the condition is the empty one (the last class row, the empty prompt), which guidance needs. Class
table and text encoder are trained together with the network, from nothing.

What differs from the originals, beside the size: the text encoder is not pretrained, its tokenizer has 900 merges
learned from the texts at hand and 24 positions (the longest text takes 19).
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from folders import assemble, averaged_model, sample_images, sample_inputs, write_texts
from latents import Latents, draw, encode_drawings, read_source
from recipes import RECIPES, Denoiser
from torch import Tensor, nn
from train_first_stage import CLASSES as STAGE_CLASSES
from training import HERE, Run, Settings, describe_device, draw_timesteps, fit, pick_device, write_grid


@dataclass(frozen=True)
class LatentSettings(Settings):
    """Settings of a latent model."""

    batch: int = 256
    lr: float = 8e-4
    warmup: int = 500
    drop: float = 0.1  # share of the draws whose condition is empty
    recoloured: float = 0.35  # share of the draws that are recoloured drawings, text only


def noise_loss(model: nn.Module, alphas: Tensor, z: Tensor, rows: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Equation (2), one value per image: float32 [batch]."""
    a = alphas[t][:, None, None, None]
    z_t = (a.sqrt() * z + (1 - a).sqrt() * eps).contiguous(memory_format=torch.channels_last)
    return (model(z_t, t, rows) - eps).square().flatten(1).mean(1)


def latent_losses(run: Run, latents: Latents, alphas: Tensor) -> dict[str, Tensor]:
    """Equation (2) on a new batch."""
    settings: LatentSettings = run.settings
    z, rows = draw(latents, settings.batch, settings.drop, run.generator)
    t = draw_timesteps(settings.batch, len(alphas), run.generator)
    eps = torch.randn(z.shape, generator=run.generator, device=z.device)
    return {"loss": noise_loss(run.module, alphas, z, rows, t, eps).mean()}


@torch.no_grad()
def measure_loss(model: nn.Module, alphas: Tensor, latents: Latents, *, seed: int = 1, draws: int = 32) -> float:
    """Mean of (2) over `draws` batches of 256 with their conditions; the draws depend on `seed` alone."""
    generator = torch.Generator(latents.z.device).manual_seed(seed)
    total = 0.0
    for _ in range(draws):
        z, rows = draw(latents, 256, 0.0, generator)
        t = draw_timesteps(256, len(alphas), generator)
        eps = torch.randn(z.shape, generator=generator, device=z.device)
        total += noise_loss(model, alphas, z, rows, t, eps).mean().item()
    return total / draws


def main(
    model: Annotated[str, typer.Option(help=", ".join(RECIPES))],
    minutes: Annotated[float, typer.Option(help="Wall clock of the training.")] = 8.0,
    data: Annotated[Path | None, typer.Option(help="The npz of zoo/render.py, of the model's size.")] = None,
    first_stage: Annotated[Path | None, typer.Option(help="Folder of the trained first stage; zoo/runs/KIND.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model; zoo/runs/MODEL.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Resumed if it exists; OUT.pt.")] = None,
    batch: Annotated[int, typer.Option(help="Images per step.")] = LatentSettings.batch,
    steps: Annotated[int | None, typer.Option(help="Steps instead of minutes: repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of every draw.")] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = LatentSettings.lr,
    graph: Annotated[bool, typer.Option(help="Capture the step into a CUDA graph.")] = True,
    sampling_steps: Annotated[int | None, typer.Option(help="Steps of the grid's sampler.")] = None,
) -> None:
    """Train, export, measure and sample; the same command again resumes from the checkpoint."""
    if model not in RECIPES:
        raise typer.BadParameter(f"expected one of {', '.join(RECIPES)}, got {model}")
    recipe = RECIPES[model]
    data = data or HERE / "data" / f"emoji-{recipe.size}.npz"
    out = out or HERE / "runs" / model
    out.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    settings = LatentSettings(minutes=minutes, batch=batch, seed=seed, steps=steps, lr=lr)
    folder = first_stage or HERE / "runs" / recipe.first_stage
    stage = STAGE_CLASSES[recipe.first_stage].from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
    stage.requires_grad_(False)
    source = read_source(recipe, data, groups=settings.groups, recoloured=settings.recoloured)
    latents = {name: encode_drawings(stage, part, source.empty, device) for name, part in source.drawings.items()}
    torch.manual_seed(seed)
    run = Run(Denoiser(recipe, source.vocabulary), settings, device)
    alphas = recipe.scheduler(**recipe.schedule).alphas_cumprod.to(device)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in run.module.named_children()}
    print(f"{model}: parameters {parameters}, images {source.counts}, {device}", flush=True)

    def export() -> None:
        averaged = averaged_model(run, recipe, source.vocabulary).half()
        half = STAGE_CLASSES[recipe.first_stage].from_pretrained(folder).half()
        assemble(recipe, averaged, half, source.tokenizer).save_pretrained(out)
        write_texts(out, recipe, source.prompts)

    fit(
        run,
        lambda run: latent_losses(run, latents["train"], alphas),
        checkpoint=checkpoint or out.with_suffix(".pt"),
        export=export,
        graph=graph,
    )
    averaged = averaged_model(run, recipe, source.vocabulary).to(device)
    report = {
        "model": model,
        "settings": asdict(settings),
        "device": describe_device(device),
        "torch": torch.__version__,
        "images": source.counts,
        "latents": {name: len(part.z) for name, part in latents.items()},
        "parameters": parameters,
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        "loss": {name: measure_loss(averaged, alphas, part) for name, part in latents.items()},
        "log": run.log,
    }
    assert all(math.isfinite(value) for value in report["loss"].values())
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print({key: value for key, value in report.items() if key != "log"}, flush=True)

    pipeline = assemble(recipe, averaged, stage, source.tokenizer)
    columns, rows = recipe.grid
    inputs = sample_inputs(recipe, source.prompts, columns * rows)
    images = sample_images(pipeline, recipe, inputs, steps=sampling_steps)
    write_grid(images, columns, out / "samples.png")


if __name__ == "__main__":
    typer.run(main)
