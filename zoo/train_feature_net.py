"""Train the feature network of FD-zoo on the rendered emoji: class, artist and damage of a drawing from 128 features.

    loss = CE(class) + CE(artist) + damage_weight mean |amount - its estimate|^2                                 (1)

    class    of zoo/labels.py, 45 of them; drawings of no class, and patched ones, are left out of this term
    artist   which of the four emoji sets
    amount   of noise, blur, tint, posterize, patch: uniform in [0, 1] for one of them, 0 for the others; all 0 for
             half the drawings                                                                                   (2)

The classes make the features see what is drawn; damage makes them see what quantization does to a drawing, which a
classifier alone would learn to overlook. Its head estimates amounts. One that named the kind instead, in a first run,
made features that jumped at the faintest noise and hardly grew from there, and the distance with them. `patch` puts a
part of another drawing over this one: local texture stays as it was, the whole makes no sense. Half the drawings are
averaged down to 32x32 and enlarged again, as the smallest model's images are. Drawings are moved by up to 4 pixels and
mirrored where that is allowed.

training.json says how well the three heads do on drawings of held-out names, and the Frechet distance of the held-in
drawings to themselves damaged, per kind at four strengths: it must grow with the strength.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from labels import CLASSES, class_of
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from training import HERE, Run, Settings, describe_device, fit, load_table, pick_device, to_float

from mezzotint.evaluation.frechet import frechet_distance, statistics
from mezzotint.evaluation.zoo_net import FEATURES, FeatureNet, load_feature_net

NO_CLASS = -100  # cross_entropy's own mark of what is left out
SHIFT = 4  # pixels
STRENGTHS = (0.1, 0.3, 0.6, 1.0)
MEASURED = 512  # drawings whose damage is measured


@dataclass(frozen=True)
class FeatureSettings(Settings):
    """Settings of the feature network."""

    batch: int = 256
    lr: float = 3e-3
    warmup: int = 100
    ema: float = 0.998
    weight_decay: float = 0.02
    damage_weight: float = 20.0
    smoothing: float = 0.1  # of the labels
    small: float = 0.5  # share of the drawings at 32x32


@dataclass(frozen=True)
class Labelled:
    """Drawings uint8 [N, 3, 64, 64], whether they may be mirrored, their class or NO_CLASS, and their artist."""

    images: Tensor
    flippable: Tensor
    classes: Tensor
    artists: Tensor

    def to(self, device: torch.device) -> "Labelled":
        """The same on `device`."""
        return Labelled(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def noise(x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """White noise of standard deviation up to 0.4."""
    return x + 0.4 * u * torch.randn(x.shape, generator=generator, device=x.device)


def blur(x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Up to the mean over 7 x 7 pixels."""
    return torch.lerp(x, F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), 7, stride=1), u)


def tint(x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Every colour channel moved by its own offset, of standard deviation up to 0.4."""
    return x + 0.4 * u * torch.randn((len(x), 3, 1, 1), generator=generator, device=x.device)


def posterize(x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """Rounded to steps of up to 1 on [-1, 1], on a grid with an offset of its own."""
    step = u.clamp(min=1 / 127.5)  # the step that 8-bit pictures have anyway
    offset = step * torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device)
    return ((x - offset) / step).round() * step + offset


def patch(x: Tensor, u: Tensor, generator: torch.Generator) -> Tensor:
    """A square of 8 to 32 pixels of the previous drawing of the batch: a larger one would be a whole drawing again."""
    side = x.shape[-1]
    half = (4 + 12 * u) * side / 64
    centre = torch.rand((len(x), 2, 1, 1), generator=generator, device=x.device) * 0.5 * side + side / 4
    line = torch.arange(side, device=x.device)
    inside = (line[:, None] - centre[:, :1]).abs().lt(half) & (line - centre[:, 1:]).abs().lt(half)
    return torch.where(inside, x.roll(1, 0), x)


DAMAGES: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "tint": tint,
    "posterize": posterize,
    "patch": patch,
}
PATCH = list(DAMAGES).index("patch")


class Classifier(nn.Module):
    """The feature network and the three heads that train it."""

    def __init__(self, artists: int) -> None:
        super().__init__()
        self.features = FeatureNet()
        self.heads = nn.ModuleDict(
            {
                "class": nn.Linear(FEATURES, len(CLASSES)),
                "artist": nn.Linear(FEATURES, artists),
                "damage": nn.Linear(FEATURES, len(DAMAGES)),
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """float32 logits of `class` and `artist`, and the amounts of `damage`."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=x.is_cuda, cache_enabled=False):
            features = self.features(x)
        return {name: head(features.float()) for name, head in self.heads.items()}


def label_table(path: Path, groups: tuple[str, ...]) -> tuple[dict[str, Labelled], list[str]]:
    """({"train", "held_out"}, names of the artists)."""
    pixels, table = load_table(path, groups)
    artists = sorted({row["source"] for row in table})
    columns = Labelled(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        flippable=torch.tensor([row["flippable"] for row in table]),
        classes=torch.tensor([NO_CLASS if (label := class_of(row)) is None else label for row in table]),
        artists=torch.tensor([artists.index(row["source"]) for row in table]),
    )
    held_out = torch.tensor([row["held_out"] for row in table])
    splits = {"train": ~held_out, "held_out": held_out}
    return {
        name: Labelled(*(getattr(columns, field)[rows] for field in Labelled.__dataclass_fields__))
        for name, rows in splits.items()
    }, artists


def shrink(x: Tensor, chosen: Tensor) -> Tensor:
    """The chosen drawings as they look at 32x32, enlarged again."""
    low = F.interpolate(F.avg_pool2d(x, 2), x.shape[-2:], mode="bilinear", antialias=True)
    return torch.where(chosen[:, None, None, None], low, x)


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each drawing moved by up to SHIFT pixels each way; white comes in."""
    side = x.shape[-1]
    offset = torch.randint(2 * SHIFT + 1, (2, len(x), 1), generator=generator, device=x.device)
    line = torch.arange(side, device=x.device)
    rows, columns = (offset[0] + line)[:, None, :, None], (offset[1] + line)[:, None, None, :]
    padded = F.pad(x, (SHIFT,) * 4, value=1.0)
    padded = padded.gather(2, rows.expand(-1, 3, -1, padded.shape[-1]))
    return padded.gather(3, columns.expand(-1, 3, side, -1))


def spoil(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(drawings with the damage of (2), its amounts float32 [N, kinds])."""
    count, device = len(x), x.device
    u = torch.rand((count, 1, 1, 1), generator=generator, device=device)
    kind = torch.randint(2 * len(DAMAGES), (count,), generator=generator, device=device)
    for index, damage in enumerate(DAMAGES.values()):
        x = torch.where((kind == index)[:, None, None, None], damage(x, u, generator), x)
    chosen = kind[:, None] == torch.arange(len(DAMAGES), device=device)
    return x.clamp(-1, 1), chosen * u.view(-1, 1)


def feature_losses(run: Run, data: Labelled) -> dict[str, Tensor]:
    """Equation (1) on a new batch."""
    settings: FeatureSettings = run.settings
    generator, device = run.generator, run.generator.device
    index = torch.randint(len(data.images), (settings.batch,), generator=generator, device=device)
    coins = torch.rand((2, settings.batch), generator=generator, device=device)
    mirror = (coins[0] < 0.5) & data.flippable[index]
    x = to_float(data.images[index])
    x = shift(torch.where(mirror[:, None, None, None], x.flip(-1), x), generator)
    x, amounts = spoil(shrink(x, coins[1] < settings.small), generator)
    logits = run.module(x.contiguous(memory_format=torch.channels_last))
    targets = {
        "class": data.classes[index].masked_fill(amounts[:, PATCH] > 0, NO_CLASS),
        "artist": data.artists[index],
    }
    terms = {
        name: F.cross_entropy(logits[name], target, ignore_index=NO_CLASS, label_smoothing=settings.smoothing)
        for name, target in targets.items()
    }
    terms["damage"] = F.mse_loss(logits["damage"], amounts)
    return {"loss": terms["class"] + terms["artist"] + settings.damage_weight * terms["damage"], **terms}


@torch.no_grad()
def measure_heads(classifier: Classifier, data: Labelled, generator: torch.Generator) -> dict[str, float]:
    """Share of right answers on clean drawings (class, artist), and 1 - error / variance of the amounts (damage)."""
    x = to_float(data.images)
    spoiled, amounts = spoil(x, generator)
    answers = {name: logits.argmax(1) for name, logits in classifier(x).items()}
    known = data.classes != NO_CLASS
    error = (classifier(spoiled)["damage"] - amounts).square().mean()
    return {
        "class": (answers["class"] == data.classes)[known].float().mean().item(),
        "artist": (answers["artist"] == data.artists).float().mean().item(),
        "damage": (1 - error / amounts.var(dim=0).mean()).item(),
    }


@torch.no_grad()
def measure_damage(net: FeatureNet, images: Tensor, seed: int) -> dict[str, list[float]]:
    """Frechet distance of the drawings to themselves damaged: {kind: one for each of STRENGTHS}."""
    x = to_float(images[:: max(1, len(images) // MEASURED)])
    clean = statistics(net(x).cpu())
    distances = {}
    for name, damage in DAMAGES.items():
        distances[name] = []
        for strength in STRENGTHS:
            generator = torch.Generator(x.device).manual_seed(seed)
            u = torch.full((len(x), 1, 1, 1), strength, device=x.device)
            spoiled = damage(x, u, generator).clamp(-1, 1)
            distances[name].append(frechet_distance(clean, statistics(net(spoiled).cpu())))
    return distances


def export(run: Run, out: Path) -> None:
    """Write the averaged feature network, float16, without its heads."""
    state = run.averaged("features.")
    halves = {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
    save_file({name: x.contiguous().cpu() for name, x in halves.items()}, out / "model.safetensors")


def measure(run: Run, splits: dict[str, Labelled], out: Path) -> dict[str, Any]:
    """What training.json says of the trained network, read back from `out`."""
    device, seed = run.generator.device, run.settings.seed
    classifier = Classifier(run.module.heads["artist"].out_features).to(device)
    classifier.load_state_dict(run.averaged())
    classifier.features.load_state_dict(load_feature_net(out / "model.safetensors").state_dict())
    generator = torch.Generator(device).manual_seed(seed)
    classifier.eval()
    damage = measure_damage(classifier.features, splits["train"].images, seed)
    return {
        "right": {name: measure_heads(classifier, part, generator) for name, part in splits.items()},
        "damage": {"strengths": STRENGTHS, **damage},
    }


def main(
    minutes: Annotated[float, typer.Option(help="Wall clock of the training.")] = 0.5,
    data: Annotated[Path, typer.Option(help="The npz of zoo/render.py, 64 px.")] = HERE / "data" / "emoji-64.npz",
    out: Annotated[Path, typer.Option(help="Folder for the weights and the log.")] = HERE / "runs" / "feature-net",
    checkpoint: Annotated[Path | None, typer.Option(help="Resumed if it exists; beside `out` if not given.")] = None,
    batch: Annotated[int, typer.Option(help="Drawings per step.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the weights and of every draw.")] = 0,
    steps: Annotated[int | None, typer.Option(help="If given, these and not the minutes end the run.")] = None,
    graph: Annotated[bool, typer.Option(help="Replay a CUDA graph, on a GPU.")] = True,
) -> None:
    """Train and export; the same command again resumes from the checkpoint."""
    device = pick_device()
    settings = FeatureSettings(minutes=minutes, batch=batch, seed=seed, steps=steps)
    splits, artists = label_table(data, settings.groups)
    splits = {name: part.to(device) for name, part in splits.items()}
    torch.manual_seed(seed)
    run = Run(Classifier(len(artists)), settings, device)
    out.mkdir(parents=True, exist_ok=True)
    parameters = sum(p.numel() for p in run.module.features.parameters())
    print(f"{parameters} parameters, {len(splits['train'].images)} images, {device}", flush=True)
    fit(
        run,
        lambda run: feature_losses(run, splits["train"]),
        checkpoint=checkpoint or out.with_suffix(".pt"),
        export=lambda: export(run, out),
        graph=graph,
    )
    report = {
        "settings": asdict(settings),
        "device": describe_device(device),
        "torch": torch.__version__,
        "parameters": parameters,
        "artists": artists,
        "images": {name: len(part.images) for name, part in splits.items()},
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        **measure(run, splits, out),
        "log": run.log,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "log"}))


if __name__ == "__main__":
    typer.run(main)
