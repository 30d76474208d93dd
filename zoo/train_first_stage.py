"""Train a first stage on the rendered emoji: VQ-f4 (64 px, 3 latent channels) or KL-f8 (128 px, 4 latent channels).

The autoencoders of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1, in
diffusers' classes and at about 2 M parameters. With e = x - x_hat, both in [-1, 1], and s over scales 1, 1/2, 1/4:

    fit     = sum_s mean |e_s| + mean |grad e_s|                                                                 (1)
    vq-f4:    loss = fit + 0.25 mean (z - sg[q(z)])^2,      q(z) the nearest of the codes                        (2)
    kl-f8:    loss = fit + kl mean KL(N(mu, sigma) || N(0, 1))                                                   (3)

    x       float32 [batch, 3, S, S]         image
    z       float32 [batch, 3, S/4, S/4]     latents before the codebook
    mu      float32 [batch, 4, S/8, S/8]     mean of the latents; the decoder trains on a draw from N(mu, sigma)

What differs from the paper: no discriminator and no perceptual network. Drawings are flat areas with sharp borders,
which the gradient term of (1) keeps sharp; a discriminator would take more time than these few minutes. The codes are
running means of the latents they are nearest to, and a code that few latents choose is moved onto a latent of the
batch, so that none is dead; in the last part of the run codes no longer move like that. `scaling_factor` in the
config is 1 / std of the training images' latents, as the latent diffusion models expect it.
"""

import json
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn
from torch.nn import functional as F
from training import (
    HERE,
    Run,
    Settings,
    describe_device,
    draw_batch,
    fit,
    load_images,
    pick_device,
    to_float,
    to_uint8,
    write_grid,
)

CONFIGS: dict[str, dict[str, Any]] = {
    "vq-f4": {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (48, 64, 96),
        "layers_per_block": 1,
        "latent_channels": 3,
        "sample_size": 64,
        "num_vq_embeddings": 2048,
        "norm_num_groups": 8,
        "vq_embed_dim": 3,
    },
    "kl-f8": {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (32, 48, 64, 112),
        "layers_per_block": 1,
        "latent_channels": 4,
        "sample_size": 128,
        "norm_num_groups": 8,
        "force_upcast": False,
    },
}
CLASSES = {"vq-f4": VQModel, "kl-f8": AutoencoderKL}
BATCHES = {"vq-f4": 128, "kl-f8": 48}


@dataclass(frozen=True)
class FirstStageSettings(Settings):
    """Settings of a first stage; those of the codes are for vq-f4 only, the last two for kl-f8 only."""

    lr: float = 1e-3
    ema: float = 0.999
    edges: float = 1.0  # weight of the gradient term of (1)
    commitment: float = 0.25  # (2)
    code_decay: float = 0.98  # of the codes' running means, per step
    dead_below: float = 0.1  # latents of a batch that choose a code, running mean, below which it is moved
    move_until: float = 0.7  # progress after which no code is moved
    kl: float = 1e-3  # (3)
    permuted: float = 0.25  # share of images whose colour channels change places: the text model recolours drawings


def fit_loss(x: Tensor, y: Tensor, edges: float) -> Tensor:
    """Equation (1) of images [N, 3, H, W]."""
    error = x - y
    total = error.new_zeros(())
    for scale in range(3):
        e = F.avg_pool2d(error, 2**scale) if scale else error
        down, right = e[:, :, 1:] - e[:, :, :-1], e[:, :, :, 1:] - e[:, :, :, :-1]
        total = total + e.abs().mean() + edges * (down.abs().mean() + right.abs().mean())
    return total


def permute_colours(x: Tensor, orders: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images [N, 3, H, W], `share` of them with red, green and blue in another of the `orders` than the first."""
    other = torch.randint(1, len(orders), (len(x),), generator=generator, device=x.device)
    chosen = torch.rand(len(x), generator=generator, device=x.device) < share
    return x.gather(1, orders[other * chosen][:, :, None, None].expand_as(x))


class VQStage(nn.Module):
    """A VQModel and the running sums of its codes: `chosen` [K] latents a batch per code, `sums` [K, D] of them."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = VQModel(**config)
        codes = self.model.quantize.embedding.weight.requires_grad_(False)
        self.register_buffer("chosen", torch.zeros(len(codes)))
        self.register_buffer("sums", torch.zeros_like(codes))

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """int64 [M]: the code nearest to each row of `z` [M, D]."""
        codes = self.model.quantize.embedding.weight
        return (codes.square().sum(1) - 2 * z @ codes.T).argmin(1)

    @torch.no_grad()
    def update_codes(self, z: Tensor, index: Tensor, run: Run) -> None:
        """Move every code to the running mean of the latents that chose it; one that is dead to a random latent."""
        settings: FirstStageSettings = run.settings
        decay, codes = settings.code_decay, self.model.quantize.embedding.weight
        self.chosen.mul_(decay).index_add_(0, index, z.new_full((len(z),), 1 - decay))
        self.sums.mul_(decay).index_add_(0, index, z * (1 - decay))
        random = z[torch.randint(len(z), (len(codes),), generator=run.generator, device=z.device)]
        dead = (self.chosen < settings.dead_below) & (run.progress <= settings.move_until)
        self.sums.copy_(torch.where(dead[:, None], random, self.sums))
        self.chosen.masked_fill_(dead, 1.0)  # a number in `where` would be copied from the host, not in a graph
        codes.copy_(self.sums / self.chosen.clamp(min=1e-8)[:, None])

    def forward(self, x: Tensor, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        """(reconstruction, {loss term: unweighted value})."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16, cache_enabled=False):
            z = self.model.encode(x).latents
        z = z.float()
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        index = self.nearest(flat)
        quantized = self.model.quantize.embedding.weight[index].view(*z.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        commitment = (z - quantized).square().mean()
        through = z + (quantized - z).detach()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, cache_enabled=False):
            y = self.model.decoder(self.model.post_quant_conv(through))  # `decode` copies from the CPU: no graph then
        if self.training:
            self.update_codes(flat.detach(), index, run)
        return y.float(), {"commitment": commitment}


class KLStage(nn.Module):
    """An AutoencoderKL; trains on draws of its latents."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = AutoencoderKL(**config)
        self.register_buffer("orders", torch.tensor(list(permutations(range(3)))), persistent=False)

    def forward(self, x: Tensor, run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        """(reconstruction, {loss term: unweighted value})."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16, cache_enabled=False):
            moments = self.model.quant_conv(self.model.encoder(x))
        mean, log_variance = moments.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=run.generator, device=x.device)
        z = mean + (0.5 * log_variance).exp() * noise
        with torch.autocast(x.device.type, dtype=torch.bfloat16, cache_enabled=False):
            y = self.model.decode(z).sample
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return y.float(), {"kl": kl}


STAGES = {"vq-f4": VQStage, "kl-f8": KLStage}


def first_stage_losses(run: Run, images: Tensor, flippable: Tensor) -> dict[str, Tensor]:
    """Equations (1) to (3) on a new batch."""
    settings: FirstStageSettings = run.settings
    x = draw_batch(images, flippable, settings.batch, run.generator)
    if isinstance(run.module, KLStage):
        x = permute_colours(x, run.module.orders, settings.permuted, run.generator)
    x = x.contiguous(memory_format=torch.channels_last)
    y, terms = run.module(x, run)
    loss = fit_loss(x, y, settings.edges)
    for name, value in terms.items():
        loss = loss + getattr(settings, name) * value
    return {"loss": loss, "l1": (x - y).abs().mean(), **terms}


@torch.no_grad()
def encode(model: VQModel | AutoencoderKL, images: Tensor, batch: int = 256) -> Tensor:
    """float32 [N, C, h, w]: unscaled latents of uint8 images; before the codebook, or the means."""
    parts = []
    for part in images.split(batch):
        encoded = model.encode(to_float(part))
        parts.append(encoded.latents if isinstance(model, VQModel) else encoded.latent_dist.mean)
    return torch.cat(parts)


@torch.no_grad()
def decode(model: VQModel | AutoencoderKL, latents: Tensor, batch: int = 256) -> Tensor:
    """float32 [N, 3, H, W] in -1..1 from unscaled latents."""
    return torch.cat([model.decode(part).sample for part in latents.split(batch)]).clamp(-1, 1)


def psnr(images: Tensor, y: Tensor) -> float:
    """Mean over the images of 10 log10(4 / mean squared error), in dB; `images` uint8, `y` in -1..1."""
    error = (to_float(images) - y).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp(min=1e-10))).mean().item()


def codes_in_use(model: VQModel, latents: Tensor) -> int:
    """Number of codes that at least one of the latents chooses."""
    flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    codes = model.quantize.embedding.weight
    return len(torch.cat([torch.cdist(part, codes).argmin(1).unique() for part in flat.split(65536)]).unique())


def export(run: Run, kind: str, images: Tensor, out: Path) -> None:
    """Write the averaged weights, float16, with the scaling factor that the training images' latents give."""
    model = CLASSES[kind](**CONFIGS[kind])
    model.load_state_dict(run.averaged("model."))
    latents = encode(model.eval().to(images.device), images[::2])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    model.half().save_pretrained(out)


def pair_up(images: dict[str, Tensor], decoded: dict[str, Tensor], *, count: int, columns: int) -> np.ndarray:
    """uint8 [M, H, W, 3]: rows of `columns` images, each above the row of what became of them; full rows only."""
    rows = []
    for name, split in images.items():
        before, after = to_uint8(to_float(split[:count])), to_uint8(decoded[name][:count])
        for start in range(0, len(before) - columns + 1, columns):
            rows += [before[start : start + columns], after[start : start + columns]]
    return np.concatenate(rows)


@torch.no_grad()
def measure(kind: str, out: Path, splits: dict[str, Tensor]) -> dict[str, Any]:
    """What the exported model does, in float32; writes the grid of reconstructions, held-out images first."""
    device = splits["train"].device
    model = CLASSES[kind].from_pretrained(out, torch_dtype=torch.float32).to(device).eval()
    every = len(splits["train"]) // len(splits["held_out"])  # as many training images as held-out ones
    chosen = {"held_out": splits["held_out"], "train": splits["train"][::every][: len(splits["held_out"])]}
    latents = {name: encode(model, images) for name, images in chosen.items()}
    decoded = {name: decode(model, z) for name, z in latents.items()}
    columns = min(16, *map(len, chosen.values()))
    write_grid(pair_up(chosen, decoded, count=48, columns=columns), columns, out / "samples.png")
    z = encode(model, splits["train"])
    report = {
        "psnr_db": {name: round(psnr(chosen[name], decoded[name]), 2) for name in chosen},
        "latents": {
            "mean": [round(v, 4) for v in z.mean((0, 2, 3)).tolist()],
            "std": [round(v, 4) for v in z.std((0, 2, 3)).tolist()],
            "largest": round(z.abs().max().item(), 3),
        },
        "scaling_factor": model.config.scaling_factor,
    }
    if kind == "vq-f4":
        report["codes_in_use"] = codes_in_use(model, z)
    return report


def main(
    kind: Annotated[str, typer.Option(help="vq-f4 or kl-f8.")],
    minutes: Annotated[float, typer.Option(help="Wall clock of the training.")] = 4.0,
    data: Annotated[Path | None, typer.Option(help="The npz of zoo/render.py, 64 px for vq-f4, 128 for kl-f8.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model; zoo/runs/KIND by default.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Resumed if it exists; OUT.pt by default.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps instead of minutes: repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of every draw.")] = 0,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = FirstStageSettings.lr,
    kl: Annotated[float, typer.Option(help="Weight of the KL term.")] = FirstStageSettings.kl,
    graph: Annotated[bool, typer.Option(help="Capture the step into a CUDA graph.")] = True,
) -> None:
    """Train, export and measure; the same command again resumes from the checkpoint."""
    if kind not in CONFIGS:
        raise typer.BadParameter(f"expected one of {', '.join(CONFIGS)}, got {kind}")
    size = CONFIGS[kind]["sample_size"]
    data = data or HERE / "data" / f"emoji-{size}.npz"
    out = out or HERE / "runs" / kind
    device = pick_device()
    settings = FirstStageSettings(minutes=minutes, batch=batch or BATCHES[kind], seed=seed, steps=steps, lr=lr, kl=kl)
    splits, flippable = load_images(data, device, settings.groups)
    if splits["train"].shape[-1] != size:
        raise typer.BadParameter(f"{data}: {kind} needs images of {size} px, got {splits['train'].shape[-1]}")
    torch.manual_seed(seed)
    run = Run(STAGES[kind](CONFIGS[kind]), settings, device)
    out.mkdir(parents=True, exist_ok=True)
    parameters = sum(p.numel() for p in run.module.model.parameters())
    print(f"{kind}: {parameters} parameters, {len(splits['train'])} images, {device}", flush=True)

    fit(
        run,
        lambda run: first_stage_losses(run, splits["train"], flippable),
        checkpoint=checkpoint or out.with_suffix(".pt"),
        export=lambda: export(run, kind, splits["train"], out),
        graph=graph,
    )
    report = {
        "kind": kind,
        "settings": asdict(settings),
        "device": describe_device(device),
        "torch": torch.__version__,
        "images": {name: len(images) for name, images in splits.items()},
        "parameters": parameters,
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        **measure(kind, out, splits),
        "log": run.log,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print({key: value for key, value in report.items() if key != "log"})


if __name__ == "__main__":
    typer.run(main)
