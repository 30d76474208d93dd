"""`mezzotint quantize`: a float model in, an artifact out."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.output import INTERRUPTED, facts, fail, guarded, progress_bars, show, size
from mezzotint.errors import OutputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from mezzotint.config import QuantizeConfig
    from mezzotint.manifest import Manifest

BITS_HELP = "Bits of weights and activations, 2 to 8 each: [b]w4a8[/b], w8a8, w6a6, w4a4, w3a8, w2a8; a32 keeps float."
RECIPE_HELP = (
    "[b]eda-dm[/b]: EDA-DM with the faults of its release mended. [b]eda-dm-official[/b]: as released, for comparison. "
    "[b]nearest[/b]: fitted ranges, rounding to nearest, no learning. [b]nearest-minmax[/b]: ranges not fitted either. "
    "[b]ptq4dm[/b]: the same on samples of normally distributed time steps. [b]q-diffusion[/b]: learned rounding, then "
    "activation steps, on uniform time steps. [b]tfmq-dm[/b]: that with the time layers learned and ranged apart."
)


@guarded
def quantize(
    model: options.Model = options.DEFAULT_MODEL,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write.", show_default="MODEL-BITS here")
    ] = None,
    bits: Annotated[str, typer.Option(help=BITS_HELP, rich_help_panel=options.METHOD)] = "w4a8",
    recipe: Annotated[str, typer.Option(help=RECIPE_HELP, rich_help_panel=options.METHOD)] = "eda-dm",
    preset: options.Preset = "default",
    calib_size: options.CalibSize = None,
    iters: options.Iters = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples in an optimiser step.",
            min=1,
            show_default="32, or what the preset says",
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    correction: Annotated[
        str | None,
        typer.Option(
            help="Correction while sampling, on any recipe: [b]ptqd[/b] measures the quantization noise of every step "
            "and takes it out.",
            show_default="none",
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    block_weighting: Annotated[
        str | None,
        typer.Option(
            help="Loss of a unit: plain [b]mse[/b], or weighted by a diagonal [b]fisher[/b] estimate.",
            show_default="mse",
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts to calibrate a text model on: one a line, a JSON list, or COCO captions. Evaluate on others.",
            show_default=options.BUILT_IN,
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Classes to calibrate a class-conditional model on: 0,2,4 or 0..9. Evaluate on others; for a model "
            "that will be used, name all of them.",
            show_default="even ones; odd ones are evaluated",
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    quantize_vae: Annotated[
        str | None,
        typer.Option(
            help="Quantize the first stage (vae, vqvae) too, to these bits. Its rounding is not learned.",
            metavar="BITS",
            show_default="stays float",
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    quantize_text_encoder: Annotated[
        str | None,
        typer.Option(
            help="Quantize the text encoder too, to these bits. Its rounding is not learned.",
            metavar="BITS",
            show_default="stays float",
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    cache_gb: options.CacheGb = None,
    cache_dtype: Annotated[
        str | None,
        typer.Option(
            help="Of these inputs and targets: [b]float32[/b], or [b]float16[/b] in half the room.",
            show_default="float32",
            rich_help_panel=options.RUNNING,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same artifact.", min=0, rich_help_panel=options.METHOD)] = 1234,
    steps: options.Steps = None,
    scheduler: options.Scheduler = None,
    spacing: options.Spacing = None,
    guidance: options.Guidance = None,
    eta: options.Eta = None,
    device: options.Device = "auto",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a run that was stopped.", rich_help_panel=options.RUNNING),
    ] = False,
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Quantize a diffusion model and save it as an artifact.

    Without arguments the embedded model is quantized to W4A8. While it runs,
    finished work is kept in OUT.resume; after Ctrl-C or a crash the same
    command with --resume goes on from there.

    [b]Examples[/b]

    mezzotint quantize --preset fast -o emoji-w4a8

    mezzotint quantize google/ddpm-cifar10-32 -o cifar-w8a8 --bits w8a8 --device cuda

    mezzotint quantize ./my-model -o my-w4a8 --recipe nearest --calib-size 256

    mezzotint quantize ./sd-v1 -o sd-w4a8 --prompts captions.txt --quantize-vae w8a8
    """
    from mezzotint.recipes.registry import make_config

    words = inputs.sampler_words(steps, scheduler, spacing, eta, guidance)
    told = inputs.read_told(None, prompts, labels)
    plms = {"spacing": "uniform", "eta": 0.0} if words.kind == "plms" else {}
    given = {name: value for name, value in asdict(words).items() if value is not None}
    changes: dict[str, Any] = {
        **plms | given,
        "calib_size": calib_size,
        "iters": iters,
        "batch_size": batch_size,
        "block_weighting": block_weighting,
        "correction": correction,
        "cache_gb": cache_gb,
        "cache_dtype": cache_dtype,
        "vae_bits": quantize_vae,
        "text_encoder_bits": quantize_text_encoder,
        "seed": seed,
    }
    config = make_config(recipe, bits, preset, **changes)  # what is wrong with the options is said before hours of work

    def configure(pipeline: DiffusionPipeline) -> QuantizeConfig:
        from mezzotint.models.families import family_of

        inputs.sampler_config(pipeline, words)  # for its complaints, which name the options
        conditions = inputs.check_told(pipeline, told)
        return make_config(recipe, bits, preset, family=family_of(pipeline), **changes, conditions=conditions)

    out = out or Path(f"{Path(model).name}-{config.bits}")
    _run(model, out, configure, inputs.find_device(device), resume=resume, overwrite=overwrite, json=json)


def _run(
    model: str,
    out: Path,
    configure: Callable[[DiffusionPipeline], QuantizeConfig],
    device: str,
    *,
    resume: bool,
    overwrite: bool,
    json: bool,
) -> None:
    from mezzotint.artifact import check_output, read_manifest, save_quantized
    from mezzotint.pipeline import quantize as run

    check_output(out, overwrite)
    kept = _resume_folder(out, resume=resume, overwrite=overwrite)
    try:
        with progress_bars() as progress:
            pipeline = inputs.load_float(model, "cpu", progress)
            config = configure(pipeline)
            quantized = run(pipeline, config=config, device=device, progress=progress, resume_dir=kept)
            save_quantized(quantized, out, overwrite=overwrite)
    except KeyboardInterrupt:
        hint = f"what is finished is kept in {kept}; the same command with --resume goes on" if _has_work(kept) else ""
        raise fail(f"interrupted; {hint or 'nothing was written'}", INTERRUPTED) from None
    finally:
        if not _has_work(kept):
            shutil.rmtree(kept, ignore_errors=True)
    shutil.rmtree(kept, ignore_errors=True)
    float_bytes = sum(leaf.numel() * leaf.element_size() for leaf in pipeline.unet.parameters())
    result = summary(read_manifest(out), out, float_bytes)
    show(result, facts("Quantized", _rows(result)), json)


def _resume_folder(out: Path, *, resume: bool, overwrite: bool) -> Path:
    """Where the run keeps what is finished; empty unless the run goes on."""
    folder = out.parent / f"{out.name}.resume"
    if resume or not folder.exists():
        return folder
    if not overwrite:
        raise OutputError(
            f"{folder}: holds a run that was stopped; go on with --resume, or start again with --overwrite"
        )
    if not (folder / "run.json").is_file():
        raise OutputError(f"{folder}: is not ours to replace, and the run needs that name; choose another --out")
    shutil.rmtree(folder)
    return folder


def _has_work(folder: Path) -> bool:
    """Whether anything worth resuming is there: the first thing that a run finishes is its calibration set."""
    return any(folder.glob("*.safetensors"))


def summary(manifest: Manifest, out: Path, float_bytes: int) -> dict[str, Any]:
    """What the command answers."""
    units = manifest.results.get("units", [])
    return {
        "artifact": str(out),
        "model": manifest.base.name,
        "bits": manifest.bits,
        "recipe": manifest.config.get("recipe"),
        "layers": len(manifest.layers),
        "units": dict(Counter(unit["kept"] for unit in units)),
        "float_bytes": float_bytes,
        "bytes": manifest.files["unet/quantized.safetensors"].bytes,
        "parts": {
            name: {
                "bits": part.bits,
                "bytes": manifest.files[f"{name}/quantized.safetensors"].bytes,
                "sqnr_db": part.results["sqnr_db"],
            }
            for name, part in manifest.parts.items()
        },
        "seconds": manifest.results.get("seconds", {}),
    }


def _rows(result: dict[str, Any]) -> dict[str, str]:
    smaller = result["float_bytes"] / result["bytes"]
    rows = {
        "artifact": result["artifact"],
        "model": f"{result['model']}, {result['bits'].upper()}, recipe {result['recipe']}",
        "network": f"{size(result['float_bytes'])} -> {size(result['bytes'])} ({smaller:.2f}x smaller)",
        "integer layers": str(result["layers"]),
    }
    if result["units"]:
        rows["units"] = ", ".join(f"{count} {kept}" for kept, count in sorted(result["units"].items()))
    for name, part in result["parts"].items():
        rows[name] = f"{part['bits'].upper()}, {size(part['bytes'])}, {part['sqnr_db']:.1f} dB SQNR of its output"
    rows["time"] = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in result["seconds"].items())
    return rows
