"""`mezzotint import`: an original checkpoint in, a diffusers folder out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import options
from mezzotint.cli.output import facts, guarded, progress_bars, show
from mezzotint.errors import OutputError

if TYPE_CHECKING:
    from mezzotint.models.importing import Imported

INDEX, MANIFEST = "model_index.json", "manifest.json"


@guarded
def import_(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A .ckpt, .pt or .safetensors file, as its authors published it.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write.", show_default="the name of CKPT, here")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="The YAML that came with the checkpoint.",
            show_default="CKPT's name with .yaml, or config.yaml beside it; none is needed for a published model",
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="Take the averaged weights of the denoiser where there are any.")
    ] = True,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Turn an original checkpoint into a diffusers folder.

    For the five models of the EDA-DM paper and others with the same networks:

    - ermongroup/ddim, pixel space (ema_diffusion_cifar10_model)

    - CompVis latent diffusion, unconditional, VQ or KL first stage (LSUN)

    - CompVis latent diffusion with classes (ImageNet, cin256-v2)

    - Stable Diffusion v1 (needs open-clip-torch for the vocabulary of CLIP)

    Every entry of the file finds its place or is named in an error. No code in
    a file is ever run: pickles that need it are refused. What the file does
    not hold (often the text encoder) is left out, with a warning.

    [b]Examples[/b]

    mezzotint import lsun_beds256/model.ckpt -o bedroom

    mezzotint import sd-v1-4.ckpt -o sd-v1 --no-ema

    mezzotint import my.ckpt --config my-training.yaml -o mine

    Then: mezzotint quantize bedroom -o bedroom-w4a8 --device cuda

    The other commands take a CKPT in place of a folder, too, and import it anew each time.
    """
    from mezzotint.artifact.atomic import atomic_folder
    from mezzotint.models.importing import check_file, import_checkpoint
    from mezzotint.models.quiet import quiet_diffusers

    check_file(checkpoint)
    folder = _check_folder(out or Path(checkpoint.stem), overwrite)
    with progress_bars() as progress:
        progress.start(f"import {checkpoint.name}", 2)
        imported = import_checkpoint(checkpoint, config=config, use_ema=ema)
        progress.advance()
        with atomic_folder(folder) as partial, quiet_diffusers():
            imported.pipeline.save_pretrained(partial, safe_serialization=True)
        progress.advance()
        progress.finish()
    result = summary(imported, checkpoint, folder)
    show(result, facts("Imported", _rows(result)), json)


def _check_folder(folder: Path, overwrite: bool) -> Path:
    """`folder`, absolute, if a float pipeline may be written there. OutputError if not."""
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; choose a folder with --out")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(f"{folder}: exists already; choose another folder, or replace it with --overwrite")
        if not (folder / INDEX).is_file() or (folder / MANIFEST).is_file():
            raise OutputError(f"{folder}: holds something else than a float pipeline; it will not be replaced")
    return folder


def summary(imported: Imported, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """What the command answers."""
    parts = {name: part for name, part in imported.pipeline.components.items() if part is not None}
    return {
        "folder": str(folder),
        "checkpoint": str(checkpoint),
        "pipeline": type(imported.pipeline).__name__,
        "config": imported.origin,
        "weights": imported.weights,
        "parts": {
            name: {
                "class": type(part).__name__,
                "parameters": sum(p.numel() for p in part.parameters()) if hasattr(part, "parameters") else None,
            }
            for name, part in sorted(parts.items())
        },
        "absent": list(imported.absent),
    }


def _rows(result: dict[str, Any]) -> dict[str, str]:
    rows = {
        "folder": result["folder"],
        "pipeline": result["pipeline"],
        "configuration": result["config"],
        "weights": {"ema": "EMA", "plain": "plain"}[result["weights"]],
    }
    for name, part in result["parts"].items():
        count = "" if part["parameters"] is None else f", {part['parameters'] / 1e6:.1f} M parameters"
        rows[name] = part["class"] + count
    if result["absent"]:
        rows["left out"] = ", ".join(result["absent"])
    return rows
