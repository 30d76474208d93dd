"""Copy trained models to where the package finds them, with cards, statistics and pictures drawn from what was copied.

    zoo/runs/ddim           -> src/mezzotint/embedded/ddim-emoji     in the wheel
    zoo/runs/<first stage>  -> zoo/models/<first stage>              once
    zoo/runs/<model>        -> zoo/models/<model>                    its first stage is a relative link to the above

All weights together stay under 45 MB, and no file is over 16 MB: what is larger is an error after copying. Statistics
and features (2 MB together) are not counted.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from cards import model_card, stage_card
from diffusers import DDIMScheduler
from features import EMBEDDED
from folders import sample_images, sample_inputs
from latents import read_source
from recipes import RECIPES
from safetensors.torch import load_file
from sources import SOURCES
from train_ddim import SCHEDULER, sample_grid
from train_stats import link, write_statistics
from training import HERE, load_table, write_grid

import mezzotint
from mezzotint.evaluation import zoo_net

MODELS = HERE / "models"
EMBEDDED_FILES = (
    "model_index.json",
    "training.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)
STAGE_FILES = ("config.json", "diffusion_pytorch_model.safetensors", "training.json", "samples.png")
STAGE_SIZES = {"vq-f4": 64, "kl-f8": 128}
NOT_COPIED = ("vqvae", "vae", "samples.png")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
ARTWORK = "LICENSE-ARTWORK.md"
ALL_MEGABYTES, FILE_MEGABYTES = 45, 16


def ship_embedded(run: Path, out: Path, *, rows: int = 8, steps: int = 50) -> None:
    """Fill the embedded model's folder; run zoo/features.py afterwards."""
    for name in EMBEDDED_FILES:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, out / name)
    DDIMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    sample_grid(out, torch.device("cpu"), out / "samples.png", rows=rows, steps=steps)


def ship_first_stage(kind: str, run: Path, out: Path, data: Path) -> None:
    """Copy a first stage and write its card."""
    out.mkdir(parents=True, exist_ok=True)
    for name in STAGE_FILES:
        shutil.copyfile(run / name, out / name)
    report = json.loads((out / "training.json").read_text())
    _, rows = load_table(data / f"emoji-{STAGE_SIZES[kind]}.npz", report["settings"]["groups"])
    (out / "README.md").write_text(stage_card(kind, report, rows))


def ship_latent(name: str, run: Path, out: Path, data: Path, basis: Path) -> None:
    """Copy a latent model, link its first stage, draw its samples, and write its statistics and its card."""
    recipe = RECIPES[name]
    part = "vqvae" if recipe.first_stage == "vq-f4" else "vae"
    check_first_stage(run / part, out.parent / recipe.first_stage)
    if out.exists():
        shutil.rmtree(out)
    shutil.copytree(run, out, ignore=shutil.ignore_patterns(*NOT_COPIED))
    link(out / part, out.parent / recipe.first_stage)
    link(out / ARTWORK, out.parent / ARTWORK)  # artifacts made from the model carry its credits

    report = json.loads((out / "training.json").read_text())
    settings = report["settings"]
    images = data / f"emoji-{recipe.size}.npz"
    source = read_source(recipe, images, groups=settings["groups"], recoloured=settings["recoloured"])
    write_statistics(source.drawings["train"], out, basis)
    inputs = sample_inputs(recipe, read_prompts(out), recipe.grid[0] * recipe.grid[1])
    write_grid(sample_images(mezzotint.load(out), recipe, inputs), recipe.grid[0], out / "samples.png")
    _, rows = load_table(images, settings["groups"])
    (out / "README.md").write_text(model_card(name, report, rows, inputs, out))


def check_first_stage(trained_with: Path, shipped: Path) -> None:
    """ValueError unless the weights in the two folders are the same."""
    weights = WEIGHTS[0]
    if not (shipped / weights).is_file():
        raise ValueError(f"{shipped}: ship this first stage first")
    one, other = load_file(trained_with / weights), load_file(shipped / weights)
    if one.keys() != other.keys() or not all(torch.equal(value, other[key]) for key, value in one.items()):
        raise ValueError(f"{trained_with}: this model was trained with another first stage than {shipped}")


def read_prompts(folder: Path) -> dict[str, Any]:
    """prompts.json of the folder, {} if there is none."""
    path = folder / "prompts.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_credits(out: Path, embedded: Path) -> None:
    """The artwork's credits of the embedded model, with what was changed for these."""
    text = (embedded / ARTWORK).read_text()
    before = "rendered to 32x32 pixels on white"
    if before not in text:
        raise ValueError(f"{embedded / ARTWORK}: does not say {before!r}; adapt ship.py")
    text = text.replace(before, "rendered to 64x64 and 128x128 pixels on white; recoloured for sd-text")
    text = text.replace("The model was trained", "The models were trained").replace("this\nmodel", "these\nmodels")
    assert all(source.title in text for source in SOURCES)
    (out / ARTWORK).write_text(text)


def check_sizes(*roots: Path) -> dict[str, float]:
    """Megabytes of each file of weights, links not followed. ValueError if one or all together are too large."""
    files = [path for root in roots for path in sorted(root.rglob("*.safetensors")) if path.name in WEIGHTS]
    files = [path for path in files if not any(place.is_symlink() for place in (path, *path.parents))]
    sizes = {f"{path.parents[1].name}/{path.parent.name}/{path.name}": path.stat().st_size / 1e6 for path in files}
    largest = max(sizes, key=sizes.get)
    if sizes[largest] > FILE_MEGABYTES or sum(sizes.values()) > ALL_MEGABYTES:
        raise ValueError(
            f"{sum(sizes.values()):.1f} MB of weights, the largest {largest} {sizes[largest]:.1f} MB; "
            f"at most {ALL_MEGABYTES} and {FILE_MEGABYTES} are allowed"
        )
    return sizes


def main(
    names: Annotated[list[str] | None, typer.Argument(help="What to ship; everything in zoo/runs but ddim.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the trained models.")] = HERE / "runs",
    models: Annotated[Path, typer.Option(help="Folder to ship to.")] = MODELS,
    embedded: Annotated[Path, typer.Option(help="Folder of the embedded model.")] = EMBEDDED,
    data: Annotated[Path, typer.Option(help="Folder that zoo/render.py filled.")] = HERE / "data",
) -> None:
    """Ship first stages, then models; `ddim` must be named."""
    known = [*STAGE_SIZES, *RECIPES]
    chosen = names or [name for name in known if (runs / name / "training.json").is_file()]
    unknown = set(chosen) - {*known, "ddim"}
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected some of ddim, {', '.join(known)}")
    models.mkdir(parents=True, exist_ok=True)
    write_credits(models, embedded)
    for name in sorted(chosen, key=["ddim", *known].index):
        print(f"{name} ...", flush=True)
        if name == "ddim":
            ship_embedded(runs / name, embedded)
        elif name in STAGE_SIZES:
            ship_first_stage(name, runs / name, models / name, data)
        else:
            ship_latent(name, runs / name, models / name, data, embedded)
    sizes = check_sizes(embedded, zoo_net.WEIGHTS.parent, models)
    print("\n".join(f"{size:7.2f} MB  {name}" for name, size in sizes.items()))
    print(f"{sum(sizes.values()):7.2f} MB  together")


if __name__ == "__main__":
    typer.run(main)
