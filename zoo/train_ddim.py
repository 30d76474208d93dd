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
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from tqdm import tqdm

HERE = Path(__file__).parent

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


# Five million parameters draw these well. With signs, flags, tools and vehicles added, a first run of the same number
# of steps drew many unreadable glyphs on coloured squares.
GROUPS = ("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink")


@dataclass(frozen=True)
class Settings:
    """What decides the trained weights, beside the data and the machine's speed."""

    minutes: float  # wall clock from the start, compiling included
    batch: int = 128
    lr: float = 4e-4  # AdamW, betas (0.9, 0.99), no weight decay
    decay_from: float = 0.6  # share of the time after which lr falls linearly to zero
    warmup: int = 300  # steps
    ema: float = 0.9995  # per step; less in the first steps, see `ema_decay`
    clip: float = 1.0  # gradient norm
    seed: int = 0
    groups: tuple[str, ...] = GROUPS  # of emoji, as in the data's table


def load_images(path: Path, device: torch.device, groups: Iterable[str]) -> tuple[dict[str, Tensor], Tensor]:
    """({"train", "held_out"}: uint8 [N, 3, H, W], bool [N] "may be mirrored" of the training images) of `groups`."""
    table = json.loads(path.with_suffix(".json").read_text())
    images = torch.from_numpy(np.load(path)["images"]).permute(0, 3, 1, 2).contiguous()
    wanted = [i for i, row in enumerate(table) if row["group"] in groups]
    table, images = [table[i] for i in wanted], images[wanted]
    held_out = torch.tensor([row["held_out"] for row in table])
    flippable = torch.tensor([row["flippable"] for row in table])
    splits = {"train": images[~held_out].to(device), "held_out": images[held_out].to(device)}
    return splits, flippable[~held_out].to(device)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return images.float() / 127.5 - 1


def draw_batch(images: Tensor, flippable: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """float32 [count, 3, H, W]: images drawn with replacement, mirrored half the time where that is allowed."""
    device = images.device
    index = torch.randint(len(images), (count,), generator=generator, device=device)
    mirror = (torch.rand(count, generator=generator, device=device) < 0.5) & flippable[index]
    x = to_float(images[index])
    return torch.where(mirror[:, None, None, None], x.flip(-1), x)


def draw_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """int64 [count]: one uniform draw from each of `count` equal bins of [0, steps)."""
    bins = torch.arange(count, device=generator.device)
    u = torch.rand(count, generator=generator, device=generator.device)
    return ((bins + u) * steps / count).long().clamp_(max=steps - 1)


def noise_loss(unet: torch.nn.Module, alphas: Tensor, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Equation (2), one value per image: float32 [batch]."""
    a = alphas[t][:, None, None, None]
    x_t = a.sqrt() * x + (1 - a).sqrt() * eps
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        prediction = unet(x_t, t, return_dict=False)[0]
    return (prediction.float() - eps).square().flatten(1).mean(1)


def learning_rate(settings: Settings, step: int, progress: float) -> float:
    """Warm-up by steps, flat, then linear to zero over the last share of the time; `progress` is 0..1."""
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.lr * warm * min(1.0, (1 - progress) / (1 - settings.decay_from))


def ema_decay(settings: Settings, step: int) -> float:
    """The average's decay at a step: (1 + n) / (10 + n) until that reaches the setting."""
    return min(settings.ema, (1 + step) / (10 + step))


@torch.no_grad()
def measure_loss(unet: torch.nn.Module, alphas: Tensor, images: Tensor, *, seed: int = 1, repeats: int = 16) -> float:
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


def export(unet: UNet2DModel, ema: list[Tensor], out: Path) -> None:
    """Write the averaged weights, float16, as a DDIMPipeline folder."""
    averaged = UNet2DModel(**UNET)
    averaged.load_state_dict(dict(zip(unet.state_dict(), ema, strict=True)))
    DDIMPipeline(averaged.half(), DDIMScheduler(**SCHEDULER)).save_pretrained(out)


def sample_grid(folder: Path, device: torch.device, path: Path, *, rows: int = 8, steps: int = 100) -> None:
    """Write a PNG of rows x rows DDIM samples of the model in `folder`, computed in float32; seed 0."""
    pipe = DDIMPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(desc="sample", mininterval=5)
    generator = torch.Generator().manual_seed(0)
    images = pipe(rows * rows, generator=generator, num_inference_steps=steps, output_type="np").images
    side = images.shape[1]
    grid = images.reshape(rows, rows, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(rows * side, rows * side, 3)
    Image.fromarray((grid * 255).round().astype(np.uint8)).resize((rows * side * 3,) * 2, Image.NEAREST).save(path)


class Run:
    """Everything that changes during training, and its checkpoint."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.unet = UNet2DModel(**UNET).to(device, memory_format=torch.channels_last)
        self.ema = [value.detach().clone() for value in self.unet.state_dict().values()]  # no buffers: all are weights
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=device.type == "cuda"
        )
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.step, self.seconds, self.log = 0, 0.0, []

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "unet": self.unet.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "progress": {"step": self.step, "seconds": self.seconds, "log": self.log},
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, map_location=self.generator.device, weights_only=True)
        self.unet.load_state_dict(state["unet"])
        self.ema = state["ema"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds, self.log = (state["progress"][key] for key in ("step", "seconds", "log"))


def train(
    run: Run, settings: Settings, images: Tensor, flippable: Tensor, alphas: Tensor, *, compile: bool
) -> Iterator[dict[str, float]]:
    """Train until the time is used; about every 10 s appends {step, seconds, loss, lr} to the log and yields it."""
    forward = torch.compile(run.unet) if compile else run.unet
    parameters = list(run.unet.state_dict().values())
    losses = torch.zeros((), device=images.device)  # sum since the last log line, kept on the device
    began, logged_at, logged_step = time.monotonic() - run.seconds, run.seconds, run.step
    while (progress := run.seconds / (settings.minutes * 60)) < 1:
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(settings, run.step, progress)
        x = draw_batch(images, flippable, settings.batch, run.generator)
        t = draw_timesteps(settings.batch, len(alphas), run.generator)
        eps = torch.randn(x.shape, generator=run.generator, device=x.device)
        x = x.contiguous(memory_format=torch.channels_last)
        loss = noise_loss(forward, alphas, x, t, eps).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.unet.parameters(), settings.clip)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(run.ema, parameters, 1 - ema_decay(settings, run.step))
        losses += loss.detach()
        run.step += 1
        if run.step % 20 == 0 and images.device.type == "cuda":
            torch.cuda.synchronize()  # so that the clock below counts work done, not work queued
        run.seconds = time.monotonic() - began
        if run.seconds - logged_at > 10:
            mean = losses.item() / (run.step - logged_step)
            row = {"step": run.step, "seconds": round(run.seconds, 1), "loss": mean, "lr": group["lr"]}
            run.log.append(row)
            yield {**row, "images_per_s": settings.batch * (run.step - logged_step) / (run.seconds - logged_at)}
            losses.zero_()
            logged_at, logged_step = run.seconds, run.step


def main(
    minutes: Annotated[float, typer.Option(help="Wall clock of the training, compiling included.")] = 8.0,
    data: Annotated[Path, typer.Option(help="The npz of zoo/render.py.")] = HERE / "data" / "emoji-32.npz",
    out: Annotated[Path, typer.Option(help="Folder for the model, its log and its samples.")] = HERE / "runs" / "ddim",
    checkpoint: Annotated[Path, typer.Option(help="Resumed if it exists.")] = HERE / "runs" / "ddim.pt",
    batch: Annotated[int, typer.Option(help="Images per step.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the weights and of every draw.")] = 0,
    compile: Annotated[bool, typer.Option(help="Use torch.compile.")] = True,
    grid: Annotated[int, typer.Option(help="The sample grid's side, in images.")] = 8,
) -> None:
    """Train, export and sample; the same command again resumes from the checkpoint."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    settings = Settings(minutes=minutes, batch=batch, seed=seed)
    splits, flippable = load_images(data, device, settings.groups)
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
    run = Run(settings, device)
    if checkpoint.exists():
        run.load(checkpoint)
    for folder in (out, checkpoint.parent):
        folder.mkdir(parents=True, exist_ok=True)
    print(f"{sum(p.numel() for p in run.unet.parameters())} parameters, {len(splits['train'])} images, {device}")

    saved_at = run.seconds
    with tqdm(total=round(minutes * 60), initial=round(run.seconds), unit="s", desc="train", mininterval=0) as bar:
        for row in train(run, settings, splits["train"], flippable, alphas, compile=compile):
            bar.set_postfix({key: f"{value:.4g}" for key, value in row.items() if key != "seconds"}, refresh=False)
            bar.update(round(row["seconds"]) - bar.n)
            if run.seconds - saved_at > 60:
                run.save(checkpoint)
                export(run.unet, run.ema, out)
                saved_at = run.seconds
    export(run.unet, run.ema, out)
    run.save(checkpoint)

    every = len(splits["train"]) // len(splits["held_out"])  # as many training images as held-out ones
    measured = {"train": splits["train"][::every], "held_out": splits["held_out"]}
    averaged = DDIMPipeline.from_pretrained(out, dtype=torch.float32).unet.to(device)
    report = {
        "settings": asdict(settings),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
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
