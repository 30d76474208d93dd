"""`mezzotint sample`: images from a float or quantized model."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.output import facts, guarded, progress_bars, show
from mezzotint.errors import KernelError, ModelError, OutputError
from mezzotint.progress import as_callback

if TYPE_CHECKING:
    from torch import Tensor

    from mezzotint.progress import Progress
    from mezzotint.sampling.config import SamplerConfig

GRID, SIDECAR = "grid.png", "images.json"
SHOWN = 3  # prompts named in the table


@guarded
def sample(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP + " Quantized ones too.")
    ] = options.DEFAULT_MODEL,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PNG files.")] = Path("samples"),
    seeds: Annotated[
        str, typer.Option(help="Which images: 0..15, or 3,7,10..12. A seed always gives the same image.")
    ] = "0..15",
    prompt: options.Prompt = None,
    prompts: options.Prompts = None,
    labels: options.Labels = None,
    guidance: options.Guidance = None,
    steps: options.Steps = None,
    scheduler: options.Scheduler = None,
    spacing: options.Spacing = None,
    eta: options.Eta = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    runtime: Annotated[
        str | None,
        typer.Option(
            help="For an exported model: what runs it on the CPU, [b]ort[/b] (ONNX Runtime) or [b]openvino[/b].",
            rich_help_panel=options.RUNNING,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="For a quantized model: trace and fuse the network first. Seconds once, then faster steps. On a CPU "
            "it pays from a few hundred steps on; on a GPU the fast kernels need it.",
            show_default="on a GPU",
            rich_help_panel=options.RUNNING,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Draw images: one PNG for every seed, and grid.png with all of them.

    A conditional model also leaves images.json, which says what each image was to show.

    [b]Examples[/b]

    mezzotint sample emoji-w4a8 --seeds 0..63 -o images

    mezzotint sample ddim-emoji --seeds 7 --steps 50 --spacing uniform

    mezzotint sample sd-text --prompt "red apple" --prompt "brown dog" --seeds 0..7

    mezzotint sample ldm4-class --labels 0..3 --guidance 2

    mezzotint sample emoji-onnx --runtime ort
    """
    numbers, place = inputs.parse_seeds(seeds), inputs.find_device(device, runtime)
    words = inputs.sampler_words(steps, scheduler, spacing, eta, guidance)
    told = inputs.read_told(prompt, prompts, labels)
    paths = [out / f"seed-{number:05d}.png" for number in numbers]
    for path in (*paths, out / GRID):
        inputs.check_writable(path, overwrite)
    with progress_bars() as progress:
        pipeline = inputs.load_runnable(model, place, runtime, progress)
        begun = time.perf_counter()
        with compiled(pipeline, place, compile, progress):
            images, sampler, shown = draw_seeds(pipeline, numbers, words, told, batch_size, progress)
        seconds = time.perf_counter() - begun
    result = {
        "grid": str(out / GRID),
        "images": [str(path) for path in paths],
        "conditions": shown,
        "model": model,
        "seeds": numbers,
        "sampler": sampler.model_dump(mode="json"),
        "seconds": seconds,
    }
    _write(images, paths, out, shown, numbers)
    show(result, facts("Sampled", _rows(result, out, sampler)), json)


@contextmanager
def compiled(pipeline: Any, device: str, wanted: bool | None, progress: Progress) -> Iterator[None]:
    """Prepares a quantized pipeline for fast calls if that is `wanted`; None wants it on a GPU.

    A network is lowered in its first call: that tells `progress`, and an error of it names the way out if nobody asked.
    """
    from mezzotint.optimization import is_quantized, optimize

    unasked = wanted is None and device.startswith("cuda") and is_quantized(pipeline)
    if wanted or unasked:
        optimize(pipeline, progress=progress)
    try:
        yield
    except (ModelError, KernelError) as error:
        if unasked:
            raise type(error)(f"{error}; --no-compile draws with the plain kernels, slower") from error
        raise


def draw_seeds(
    pipeline: Any, seeds: list[int], words: inputs.SamplerWords, told: inputs.Told, batch_size: int, progress: Progress
) -> tuple[Tensor, SamplerConfig, list[str] | None]:
    """The images, the sampler that drew them, and what each was to show."""
    from mezzotint.evaluation.drawing import repeated
    from mezzotint.models.conditioning import condition_inputs, encode_conditions
    from mezzotint.sampling.trajectory import sample as draw

    sampler, given = inputs.sampler_config(pipeline, words), inputs.check_told(pipeline, told)
    wanted = repeated(given, len(seeds)) if given is not None else condition_inputs(pipeline, "evaluation", len(seeds))
    conditions = encode_conditions(pipeline, wanted)
    steps, decoding = as_callback(progress, "sample"), as_callback(progress, "decode images")
    drawing: dict[str, Any] = {"sampler": sampler, "batch_size": batch_size, "conditions": conditions}
    images = draw(pipeline, seeds, **drawing, progress=steps, decode_progress=decoding)
    return images, sampler, None if conditions is None else conditions.labels


def _rows(result: dict[str, Any], out: Path, sampler: SamplerConfig) -> dict[str, str]:
    guided = f", guidance {sampler.guidance_scale:g}" if result["conditions"] else ""
    count, seconds = len(result["images"]), result["seconds"]
    rows = {"grid": result["grid"], "images": f"{count} in {out}"}
    if result["conditions"]:
        distinct = list(dict.fromkeys(result["conditions"]))
        rows["shown"] = ", ".join(distinct[:SHOWN]) + (f" and {len(distinct) - SHOWN} more" * (len(distinct) > SHOWN))
    rows["sampler"] = f"{sampler.kind.upper()}, {sampler.steps} steps, {sampler.spacing}, eta {sampler.eta:g}{guided}"
    rows["time"] = f"{seconds:.1f} s, {seconds / count:.2f} s an image"
    return rows


def _write(images: Tensor, paths: list[Path], out: Path, shown: list[str] | None, seeds: list[int]) -> None:
    from mezzotint.evaluation.pictures import grid_png, write_png

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot make the folder: {error.strerror}; choose another one") from error
    for image, path in zip(images, paths, strict=True):
        write_png(image, path)
    columns = max(1, round(len(paths) ** 0.5))
    grid_png(images, out / GRID, columns=columns, scale=max(1, 64 // images.shape[-1]))
    if shown is not None:
        _write_sidecar(paths, out, shown, seeds)


def _write_sidecar(paths: list[Path], out: Path, shown: list[str], seeds: list[int]) -> None:
    """images.json: file, seed and prompt or class of every image, in the order of the grid."""
    entries = [
        {"file": path.name, "seed": seed, "shows": label} for path, seed, label in zip(paths, seeds, shown, strict=True)
    ]
    try:
        (out / SIDECAR).write_text(json_format.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out / SIDECAR}: cannot be written: {error.strerror}; choose another folder") from error
