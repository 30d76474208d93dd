"""Ship the feature network of FD-zoo, and the statistics of every model's training images in its features.

    zoo/runs/feature-net     -> src/mezzotint/embedded/fd-zoo      weights, log, card
    training images          -> fd_zoo.npz beside each model       mu_fd-zoo [128], sigma_fd-zoo [128, 128], float32

The statistics weigh each drawing as the model's training drew it, mirrored and recoloured ones included
(`train_stats.weighted_statistics`), at the model's own size of images. They name the weights they were made with, so
this program is run whenever those change.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from cards import paragraph, table
from features import EMBEDDED
from latents import Drawings, plain_drawings, read_source
from recipes import RECIPES
from ship import check_sizes
from torch import Tensor
from train_stats import weighted_statistics
from training import HERE, load_table, pick_device, to_float

from mezzotint.evaluation import zoo_net
from mezzotint.evaluation.frechet import Statistics
from mezzotint.evaluation.references import ZOO_FILE, ZOO_SET, write_statistics

WEIGHTS, LOG = "model.safetensors", "training.json"


def training_drawings(name: str, report: dict[str, Any], data: Path) -> Drawings:
    """What the model was trained on, by its training.json."""
    settings = report["settings"]
    if name not in RECIPES:
        pixels, rows = load_table(data / "emoji-32.npz", settings["groups"])
        kept = [index for index, row in enumerate(rows) if not row["held_out"]]
        return plain_drawings(pixels[kept], [rows[index] for index in kept])
    recipe = RECIPES[name]
    images = data / f"emoji-{recipe.size}.npz"
    source = read_source(recipe, images, groups=settings["groups"], recoloured=settings["recoloured"])
    return source.drawings["train"]


@torch.no_grad()
def drawing_statistics(net: zoo_net.FeatureNet, drawings: Drawings, batch: int = 256) -> Statistics:
    """Weighted statistics of all drawings' features; where training mirrors, each side has half the weight."""
    features: list[Tensor] = []
    weights: list[Tensor] = []
    for images, flippable, share in zip(
        drawings.images.split(batch), drawings.flippable.split(batch), drawings.weights.split(batch), strict=True
    ):
        x = to_float(images.to(next(net.parameters()).device))
        features += [net(x).cpu(), net(x[flippable.to(x.device)].flip(-1)).cpu()]
        weights += [torch.where(flippable, share / 2, share), share[flippable] / 2]
    mean, cov = weighted_statistics(torch.cat(features), torch.cat(weights))
    return Statistics(mean, cov, len(drawings.images))


def card(report: dict[str, Any]) -> str:
    """The model card of the feature network."""
    right, damage = report["right"], dict(report["damage"])
    strengths = damage.pop("strengths")
    heads = [["head", "training drawings", "held-out names"]]
    heads += [[name, f"{right['train'][name]:.1%}", f"{right['held_out'][name]:.1%}"] for name in right["train"]]
    ladder = [["damage", *(f"strength {strength:g}" for strength in strengths)]]
    ladder += [[name, *(f"{value:.3g}" for value in values)] for name, values in damage.items()]
    return "\n".join(
        [
            "---\nname: fd-zoo\nlicense: apache-2.0",
            'description: "Feature network of FD-zoo: a small classifier of emoji drawings"\n---\n',
            paragraph(
                f"A convolutional network of {report['parameters']:,} parameters that maps a drawing to 128 features.",
                "Frechet distances in them are called FD-zoo. They compare the models of mezzotint's zoo with each",
                "other and with the drawings they learned from; they say nothing about photographs, and are no FID.",
            ),
            "## Training\n",
            paragraph(
                f"{report['images']['train']:,} drawings at 64 px, {report['steps']:,} steps of",
                f"{report['settings']['batch']} drawings, {report['seconds']:.0f} s on one {report['device']}:",
                "`python zoo/train_feature_net.py`. Three heads, not kept, learn class, artist and amounts of damage;",
                "half the drawings are damaged and half are at 32 px. The artwork's authors and licences are in",
                "[LICENSE-ARTWORK.md](../ddim-emoji/LICENSE-ARTWORK.md). Share of right answers on clean",
                "drawings, and for damage the share of the amounts' variance that the head explains:",
            ),
            table(heads),
            "\n## What the distance sees\n",
            paragraph("FD-zoo of training drawings to themselves damaged, by kind and strength:"),
            table(ladder),
            "",
        ]
    )


def main(
    only: Annotated[list[str] | None, typer.Argument(help="Models whose statistics are taken; all.")] = None,
    run: Annotated[Path, typer.Option(help="What train_feature_net.py wrote.")] = HERE / "runs" / "feature-net",
    out: Annotated[Path, typer.Option(help="Folder of the shipped network.")] = zoo_net.WEIGHTS.parent,
    models: Annotated[Path, typer.Option(help="Folder of the latent models.")] = HERE / "models",
    embedded: Annotated[Path, typer.Option(help="Folder of the embedded model.")] = EMBEDDED,
    data: Annotated[Path, typer.Option(help="Folder that zoo/render.py filled.")] = HERE / "data",
) -> None:
    """Copy the network, write its card, and take the statistics of all models."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, LOG):
        if (run / name).resolve() != (out / name).resolve():
            shutil.copyfile(run / name, out / name)
    (out / "README.md").write_text(card(json.loads((out / LOG).read_text())))
    net = zoo_net.load_feature_net(out / WEIGHTS).to(pick_device())
    for folder in (embedded, *(models / name for name in RECIPES)):
        if only and folder.name not in only:
            continue
        report = json.loads((folder / LOG).read_text())
        found = drawing_statistics(net, training_drawings(folder.name, report, data))
        write_statistics(folder / ZOO_FILE, {ZOO_SET: found}, dtype=np.float32)
        print(f"{folder.name}: {found.samples} drawings", flush=True)
    print(f"{sum(check_sizes(embedded, models, out).values()):.2f} MB of weights together")


if __name__ == "__main__":
    typer.run(main)
