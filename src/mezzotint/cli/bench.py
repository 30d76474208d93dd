"""`mezzotint bench`: how fast a model is on this machine, and whether quantization pays here."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.bench_gpu import measure_on_gpu
from mezzotint.cli.output import facts, guarded, progress_bars, show, size
from mezzotint.cli.verdicts import verdict
from mezzotint.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group

    from mezzotint.progress import Progress

SLOWEST = 8  # layers in the table
DIGITS = 4  # of a time
GPU_PEAK = "of a step, weights included; what the device held before the variant was made does not count"
NO_PEAK = "not measured: that takes Linux, where a process can let go of its peak"
CPU_PEAK = (
    "resident set at its highest in a step, in a process of its own: weights, trace and what a step needs; libraries "
    "do not count"
)


@guarded
def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP + " Quantized ones too.")
    ] = options.DEFAULT_MODEL,
    batch: Annotated[int, typer.Option(min=1, help="Images in a call of the network.")] = 4,
    runs: Annotated[int, typer.Option(min=1, help="Rounds that count; the variants take turns.")] = 9,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's own.")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Also bf16 through torch.compile: a minute or two before it starts.")
    ] = False,
    attention: Annotated[
        str | None,
        typer.Option(help="Products of attention on a GPU: [b]bf16[/b], or [b]int8[/b] on codes.", show_default="bf16"),
    ] = None,
    device: options.Device = "cpu",
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Time one step of a model on this CPU or GPU: float variants and, for an artifact, integers.

    Time, and on a GPU or under Linux the peak of memory. For an artifact also
    the slowest layers, each against its float twin, and a verdict: whether
    quantization pays on this machine, and where it does not.

    [b]Examples[/b]

    mezzotint bench emoji-w4a8

    mezzotint bench ddim-emoji --batch 1 --compile

    mezzotint bench emoji-w4a8 --device cuda --batch 64 --compile
    """
    from mezzotint import speed

    place = inputs.find_device(device)
    if place == "cpu" and attention is not None:
        raise ConfigError("--attention is for a GPU: on a CPU attention is always of codes; leave it out")
    with progress_bars() as progress:
        pipeline = inputs.load_model(model, "cpu", progress)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        progress.start("time the variants", 1)
        if place == "cpu":
            variants = (*speed.FLOATS, speed.COMPILED) if compile else speed.FLOATS
            measured = {**speed.machine(), **_measure(pipeline, batch, runs, variants, progress)}
            del pipeline
            _add_peaks(measured["variants"], model, batch, torch.get_num_threads())
        else:
            measured = measure_on_gpu(
                pipeline.unet, batch, runs, place, compiled=compile, attention=attention or "bf16", progress=progress
            )
        result = {"model": model, "batch": batch, **measured}
        progress.advance()
        progress.finish()
    show(result, _table(result), json)


def _measure(pipeline: Any, batch: int, runs: int, variants: tuple[str, ...], progress: Progress) -> dict[str, Any]:
    """Variants, and for an artifact layers and verdict, as plain data."""
    import copy

    from mezzotint import speed
    from mezzotint.evaluation.cost import float_bytes, stored_bytes
    from mezzotint.optimization import optimize_network_

    network = pipeline.unet
    quantized = hasattr(network, "quantization")
    floating = speed.float_twin(network) if quantized else network
    given = speed.input_sets(floating, batch)
    calls = speed.float_calls(floating, variants)
    if quantized:
        bits = str(network.quantization.bits)
        calls[bits] = optimize_network_(copy.deepcopy(network), progress=progress)
    seconds = {name: statistics.median(s) for name, s in speed.take_turns(calls, given, runs=runs).items()}
    rows = [
        {"variant": name, "ms_median": s * 1e3, "speedup": seconds["fp32-channels-last"] / s}
        for name, s in seconds.items()
    ]
    result: dict[str, Any] = {"variants": rows, "runs": runs, "base": "fp32-channels-last"}
    result["bytes"] = {"fp32": float_bytes(floating, 4)}
    if not quantized:
        how = "float only; make the quantized model with `mezzotint quantize` and bench that"
        return {**result, "layers": [], "verdict": how}
    result["bytes"]["quantized"] = stored_bytes(network)
    result["layers"] = _layers(floating, network, given)
    return {**result, "verdict": verdict(seconds, bits, result["layers"])}


def _add_peaks(rows: list[dict[str, Any]], model: str, batch: int, threads: int) -> None:
    """Adds the peak memory of a step to the rows of variants, where this system can tell it."""
    from mezzotint import resident, speed

    if not resident.can_measure():
        return
    floats = (*speed.FLOATS, speed.COMPILED)
    names = [row["variant"] if row["variant"] in floats else resident.INTEGERS for row in rows]
    peaks = resident.peak_bytes(model, names, batch, threads)
    for row, name in zip(rows, names, strict=True):
        if peaks[name] is not None:
            row["peak_bytes"] = peaks[name]


def _layers(floating: Any, network: Any, given: list[Any]) -> list[dict[str, Any]]:
    """Every layer that both networks have, slowest on integers first; attention products have no float twin."""
    from mezzotint import speed

    floats, integers = (speed.layer_seconds(n, given) for n in (floating, network))
    order = sorted(integers, key=lambda name: -integers[name])
    rows = []
    for name in order:
        layer = network.get_submodule(name)
        report = layer.kernel_report() if hasattr(layer, "kernel_report") else None
        twin = floats.get(name)
        rows.append(
            {
                "name": name,
                "ms": integers[name] * 1e3,
                "float_ms": None if twin is None else twin * 1e3,
                "kernel": None if report is None else report.name,
                "reason": None if report is None else report.reason,
            }
        )
    return rows


def _table(result: dict[str, Any]) -> Group:
    from rich.console import Group
    from rich.table import Table

    title = f"{result['model']}: one step, batch {result['batch']}, median of {result['runs']}"
    variants = Table(title=title, title_justify="left", title_style="bold")
    peaks = any("peak_bytes" in row for row in result["variants"])
    for column in ("variant", "ms", f"against {result['base']}", *(["peak memory"] if peaks else [])):
        variants.add_column(column, justify="left" if column == "variant" else "right")
    for row in result["variants"]:
        peak = [size(row["peak_bytes"]) if "peak_bytes" in row else "not measured"] if peaks else []
        variants.add_row(row["variant"], f"{row['ms_median']:.{DIGITS}g}", f"{row['speedup']:.2f}x", *peak)
    parts: list[Any] = [variants]
    if result["layers"]:
        layers = Table(title="Slowest layers", title_justify="left", title_style="bold")
        for column in ("layer", "ms", "float ms", "kernel"):
            layers.add_column(column, overflow="fold")
        for row in result["layers"][:SLOWEST]:
            twin = "" if row["float_ms"] is None else f"{row['float_ms']:.2f}"
            layers.add_row(row["name"], f"{row['ms']:.2f}", twin, row["kernel"] or "")
        parts.append(layers)
    if result.get("kernels"):
        kernels = Table(title="What runs the layers", title_justify="left", title_style="bold")
        for column in ("layers", "kernel", "why"):
            kernels.add_column(column, justify="right" if column == "layers" else "left", overflow="fold")
        for row in result["kernels"]:
            kernels.add_row(str(row["layers"]), row["kernel"], row["reason"])
        parts.append(kernels)
    if "gpu" in result:
        rows = {"machine": f"{result['gpu']}, torch {result['torch']}"}
    else:
        rows = {"machine": f"{result['cpu']}, {result['isa']}, {result['threads']} threads, torch {result['torch']}"}
    if "attention" in result:
        rows["attention"] = f"products of {result['attention']}"
    rows["peak memory"] = (GPU_PEAK if "gpu" in result else CPU_PEAK) if peaks else NO_PEAK
    rows |= {f"bytes, {name}": size(count) for name, count in result["bytes"].items()}
    rows["bytes"] = "of tensors; a file has a header besides, which names them (mezzotint inspect says both)"
    return Group(*parts, facts("Here", {**rows, "verdict": result["verdict"]}))
