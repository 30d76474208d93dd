"""`mezzotint sample`: images from a float or quantized model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.output import facts, guarded, progress_bars, show
from mezzotint.errors import OutputError
from mezzotint.progress import as_callback

if TYPE_CHECKING:
    from torch import Tensor


@guarded
def sample(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP + " Quantized ones too.")
    ] = options.DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PNG files.")] = Path("samples"),
    seeds: Annotated[
        str, typer.Option(help="Which images: 0..15, or 3,7,10..12. A seed always gives the same image.")
    ] = "0..15",
    steps: options.Steps = None,
    scheduler: options.Scheduler = None,
    eta: options.Eta = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Draw images: one PNG for every seed, and grid.png with all of them.

    [b]Examples[/b]

    mezzotint sample emoji-w4a8 --seeds 0..63 -o images

    mezzotint sample ddim-emoji --seeds 7 --steps 50 --scheduler uniform
    """
    from mezzotint.sampling.trajectory import sample as draw

    numbers, place = inputs.parse_seeds(seeds), inputs.find_device(device)
    sampler = inputs.sampler_config(steps, scheduler, eta)
    paths = [out / f"seed-{number:05d}.png" for number in numbers]
    for path in (*paths, out / "grid.png"):
        inputs.check_writable(path, overwrite)
    with progress_bars() as progress:
        pipeline = inputs.load_model(model, place, progress)
        begun = time.perf_counter()
        images = draw(
            pipeline, numbers, sampler=sampler, batch_size=batch_size, progress=as_callback(progress, "sample")
        )
        seconds = time.perf_counter() - begun
    _write(images, paths, out)
    result = {
        "grid": str(out / "grid.png"),
        "images": [str(path) for path in paths],
        "model": model,
        "seeds": numbers,
        "sampler": sampler.model_dump(mode="json"),
        "seconds": seconds,
    }
    rows = {
        "grid": str(out / "grid.png"),
        "images": f"{len(paths)} in {out}",
        "sampler": f"DDIM, {sampler.steps} steps, {sampler.spacing}, eta {sampler.eta:g}",
        "time": f"{seconds:.1f} s, {seconds / len(paths):.2f} s an image",
    }
    show(result, facts("Sampled", rows), json)


def _write(images: Tensor, paths: list[Path], out: Path) -> None:
    from mezzotint.evaluation.pictures import grid_png, write_png

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot make the folder: {error.strerror}; choose another one") from error
    for image, path in zip(images, paths, strict=True):
        write_png(image, path)
    columns = max(1, round(len(paths) ** 0.5))
    grid_png(images, out / "grid.png", columns=columns, scale=max(1, 64 // images.shape[-1]))
