"""`mezzotint evaluate`: scores of a folder of images, an npz or a model."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.output import facts, guarded, progress_bars, show
from mezzotint.cli.sample import SIDECAR, draw_seeds
from mezzotint.errors import ConfigError
from mezzotint.progress import as_callback

if TYPE_CHECKING:
    from rich.table import Table

    from mezzotint.evaluation.images import ImageSet
    from mezzotint.evaluation.references import Reference
    from mezzotint.evaluation.scores import Score
    from mezzotint.progress import Progress

SCORING = "Scores"


@guarded
def evaluate(
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="A folder of pictures, an .npz, or a model (zoo name or folder).")
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            "-r",
            help="What to measure against: a folder of pictures, an .npz of statistics or images, or a zoo model, "
            "which stands for its training images.",
            show_default="the zoo model that IMAGES is, or was made from",
            rich_help_panel=SCORING,
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="Some of fid, sfid, is, kid, pr, fd-zoo, kd-zoo, fd-dino, cmmd, clip.", rich_help_panel=SCORING
        ),
    ] = "fd-zoo",
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One caption for each image: a text file, a JSON list, or COCO captions. A text model draws them.",
            show_default=f"what {SIDECAR} in the folder says",
            rich_help_panel=SCORING,
        ),
    ] = None,
    resize: Annotated[
        str,
        typer.Option(
            help="How images get Inception's size: [b]tf1[/b] (torch-fidelity, guided-diffusion), [b]pytorch-fid[/b] "
            "or [b]clean[/b].",
            rich_help_panel=SCORING,
        ),
    ] = "tf1",
    save_statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ",
            help="Write the statistics that the metrics need, as a reference for later, and score nothing.",
            rich_help_panel=SCORING,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Images to draw if IMAGES is a model.", min=2, rich_help_panel=options.DRAWING)
    ] = 2048,
    seed: Annotated[
        int,
        typer.Option(help="Images of the seeds from here on.", min=0, rich_help_panel=options.DRAWING),
    ] = 0,
    guidance: options.Guidance = None,
    steps: options.Steps = None,
    scheduler: options.Scheduler = None,
    spacing: options.Spacing = None,
    eta: options.Eta = None,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Score images: FID, sFID, IS, KID, precision and recall, CLIP score, CMMD, FD-DINOv2, FD-zoo.

    Every score has an interval (2 bootstrap standard deviations) and says which
    features, resizing and number of images it is made of. FD-zoo needs nothing
    but this package, and is for its zoo's models; the others need the weights
    of their networks, found in $MEZZOTINT_WEIGHTS or torch's hub cache, or
    downloaded.

    [b]Examples[/b]

    mezzotint evaluate ddim-emoji --samples 2048

    mezzotint evaluate images --reference cifar10-train.npz --metrics fid,sfid,is

    mezzotint evaluate real-images --metrics fid,sfid --save-statistics real.npz
    """
    from mezzotint.evaluation import scores
    from mezzotint.evaluation.inception import RESIZES

    names = [name.strip() for name in metrics.split(",")]
    if resize not in RESIZES:
        raise ConfigError(f"--resize: there is no {resize!r}; choose one of {', '.join(RESIZES)}")
    if save_statistics is not None:
        inputs.check_writable(save_statistics, overwrite)
    place = inputs.find_device(device)
    told = inputs.read_told(None, captions, None)
    words = inputs.sampler_words(steps, scheduler, spacing, eta, guidance)
    with progress_bars() as progress:
        found, texts, origin = _images(images, told, (samples, seed), words, batch_size, place, progress)
        scoring: dict[str, Any] = {"resize": resize, "device": place, "batch_size": batch_size}
        if save_statistics is None:
            against = _reference(reference or origin)
            measured = scores.score_images(
                found, against, names, captions=texts, **scoring, seed=seed, progress=as_callback(progress, "measure")
            )
        else:
            statistics = scores.take_statistics(found, names, **scoring, progress=as_callback(progress, "measure"))
    if save_statistics is None:
        result = {"images": found.name, "scores": [json_format.loads(score.model_dump_json()) for score in measured]}
        show(result, _table(found.name, measured), json)
        return
    from mezzotint.evaluation.references import write_statistics

    save_statistics.parent.mkdir(parents=True, exist_ok=True)
    write_statistics(save_statistics, statistics, resize=resize)
    rows = {"statistics": str(save_statistics), "features": ", ".join(statistics), "images": f"{found.count:,}"}
    show({**rows, "images": found.count}, facts("Statistics", rows), json)


def _images(
    what: str,
    told: inputs.Told,
    drawing: tuple[int, int],
    words: inputs.SamplerWords,
    batch_size: int,
    device: str,
    progress: Progress,
) -> tuple[ImageSet, list[str] | None, str | None]:
    """(the images, their captions, the zoo model they come from), each None where there is none."""
    from mezzotint.evaluation.images import folder_images, npz_images, tensor_images
    from mezzotint.models.zoo import PIPELINE_INDEX, model_folders

    path, texts = Path(what), None if told.values is None else [str(text) for text in told.values]
    if what not in model_folders() and path.is_dir() and not (path / PIPELINE_INDEX).is_file():
        return folder_images(path), texts or _sidecar(path), None
    if path.suffix == ".npz":
        arrays = npz_images(path)
        if arrays is None:
            raise ConfigError(f"{path}: holds no images (uint8 [N, H, W, 3] as arr_0); statistics cannot be scored")
        return arrays, texts, None
    pipeline = inputs.load_model(what, device, progress)
    samples, seed = drawing
    seeds = list(range(seed, seed + samples))
    if told.values is not None:
        inputs.check_told(pipeline, told)
    drawn, _, shown = draw_seeds(pipeline, seeds, words, told, batch_size, progress)
    manifest = getattr(pipeline.unet, "quantization", None)
    origin = manifest.base.name if manifest is not None else what
    return tensor_images(drawn, Path(what).name), shown, origin if origin in model_folders() else None


def _reference(what: str | None) -> Reference | None:
    from mezzotint.evaluation.references import load_reference

    return None if what is None else load_reference(what)


def _sidecar(folder: Path) -> list[str] | None:
    """What the images of a folder show, in the order of their names, if `mezzotint sample` wrote it down."""
    path = folder / SIDECAR
    if not path.is_file():
        return None
    try:
        entries = json_format.loads(path.read_text(encoding="utf-8"))
        return [entry["shows"] for entry in sorted(entries, key=lambda entry: entry["file"])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not as mezzotint sample writes it ({error}); name --captions") from error


def _table(name: str, scores: Sequence[Score]) -> Table:
    """A row a score, warnings below."""
    from rich.table import Table

    table = Table("score", "value", "interval", "images", "features", "against", title=name, title_justify="left")
    for score in scores:
        features = f"{score.features}, {score.resize}"
        interval = f"{score.low:.4g} to {score.high:.4g}"
        table.add_row(score.name, f"{score.value:.4g}", interval, f"{score.count:,}", features, score.reference)
    warnings = dict.fromkeys(f"{score.name}: {score.warning}" for score in scores if score.warning)
    if warnings:
        table.caption, table.caption_justify = "\n".join(warnings), "left"
    return table
