"""`mezzotint compare`: what quantization changed, as one table and one report."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.output import guarded, progress_bars, show, size
from mezzotint.progress import as_callback

if TYPE_CHECKING:
    from rich.table import Table

    from mezzotint.evaluation.result import Evaluation


@guarded
def compare(
    float_model: Annotated[str, typer.Argument(metavar="FLOAT", help="The float model. " + options.MODEL_HELP)],
    quantized: Annotated[str, typer.Argument(metavar="QUANT", help="The folder that `mezzotint quantize` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The report, one HTML file.")] = Path("report.html"),
    samples: Annotated[int, typer.Option(help="Images of each model.", min=2, rich_help_panel=options.DRAWING)] = 256,
    seed: Annotated[
        int,
        typer.Option(help="The images are those of the seeds from here on.", min=0, rich_help_panel=options.DRAWING),
    ] = 0,
    prompts: options.Prompts = None,
    labels: options.Labels = None,
    guidance: options.Guidance = None,
    steps: options.Steps = None,
    scheduler: options.Scheduler = None,
    spacing: options.Spacing = None,
    eta: options.Eta = None,
    batch_size: options.BatchSize = 32,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Compare a quantized model with its float model, seed by seed, and write a report.

    Both models draw the same seeds. PSNR and SSIM compare image with image,
    the Frechet distance (FD) the two sets of images, SQNR the predicted noise
    along the trajectory. Latency is measured on this machine. Prompts and
    classes are of those that never calibrate, unless you name some.

    [b]Example[/b]

    mezzotint compare ddim-emoji emoji-w4a8 -o report.html --samples 256
    """
    from mezzotint.evaluation.evaluate import evaluate, sample_pairs
    from mezzotint.evaluation.report import write_report

    words = inputs.sampler_words(steps, scheduler, spacing, eta, guidance)
    told = inputs.read_told(None, prompts, labels)
    inputs.check_writable(out, overwrite)
    place = inputs.find_device(device)
    with progress_bars() as progress:
        a = inputs.load_float(float_model, place, progress)
        b = inputs.load_artifact(quantized, place, progress)
        sampler, given = inputs.sampler_config(b, words), inputs.check_told(a, told)
        draw: dict[str, Any] = {"samples": samples, "seed": seed, "sampler": sampler, "batch_size": batch_size}
        sampling, decoding = (as_callback(progress, f"{verb} both models") for verb in ("sample", "decode"))
        pairs = sample_pairs(a, b, **draw, inputs=given, progress=sampling, decode_progress=decoding)
        progress.start("measure", 1)
        evaluation = evaluate(a, b, **draw, device=place, pairs=pairs)
        progress.advance()
        progress.finish()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_report(evaluation, pairs.float_images, pairs.quantized_images, b.unet.quantization, out)
    result = {"report": str(out), "artifact": quantized, **json_format.loads(evaluation.model_dump_json())}
    show(result, _table(evaluation, quantized, out), json)


def _table(found: Evaluation, quantized: str, out: Path) -> Table:
    """The verdict in one table, each row with both models."""
    from rich.table import Table

    from mezzotint.evaluation.verdict import verdict

    cost, paired = found.cost, found.paired
    rows = [
        ("network, float32", size(cost.network.fp32), size(cost.network.quantized)),
        ("network, float16 or bfloat16", size(cost.network.fp16), size(cost.network.quantized)),
        ("whole pipeline, float32", size(cost.pipeline.fp32), size(cost.pipeline.quantized)),
        ("bit operations of a call, float32", _giga(cost.float_bops), _giga(cost.quantized_bops)),
        ("bit operations of a call, float16", _giga(cost.half_bops), _giga(cost.quantized_bops)),
        (
            f"one call, batch of {cost.latency.batch}",
            _ms(cost.latency.float_seconds),
            _ms(cost.latency.quantized_seconds),
        ),
        ("PSNR, mean of images", "", f"{paired.psnr_mean.value:.2f} dB"),
        ("PSNR, pooled over all pixels", "", f"{paired.psnr_pooled.value:.2f} dB"),
        ("SSIM", "1", "not measured" if paired.ssim is None else f"{paired.ssim.value:.4f}"),
        *([] if paired.lpips is None else [("LPIPS, AlexNet", "0", f"{paired.lpips.value:.4f}")]),
        (f"FD of {found.samples} images, {found.distance.count} features", "0", f"{found.distance.fd.value:.2f}"),
        ("SQNR of eps, mean of steps", "", f"{found.sqnr_db:.2f} dB"),
    ]
    if found.distance.train is not None:
        train = found.distance.train
        rows.insert(-1, ("FD to the training images", f"{train.float_fd:.2f}", f"{train.quantized_fd:.2f}"))
    table = Table(
        "", "float", found.bits.upper(), title=verdict(found).headline, title_justify="left", title_style="bold"
    )
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row("artifact", "", quantized)
    table.add_row("report", "", str(out))
    return table


def _giga(count: int) -> str:
    return f"{count / 1e9:,.1f} G"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
