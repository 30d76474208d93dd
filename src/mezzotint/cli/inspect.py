"""`mezzotint inspect`: every layer of an artifact, or what would become of a float model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.output import facts, guarded, progress_bars, show, size

if TYPE_CHECKING:
    from rich.console import Group


@guarded
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=options.MODEL_HELP + " Quantized ones too.")
    ] = options.DEFAULT_MODEL,
    bits: Annotated[str, typer.Option(help="For a float model: the bits to plan for.")] = "w4a8",
    device: options.Device = "cpu",
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """List the layers of a model: kind, shape, bits, kernel, and totals.

    For an artifact: which integer kernel runs every layer on this machine, and
    why; with --device cuda, on a GPU after optimize(), whether or not there is
    one here. For a float model: what would be quantized, in which units, and which
    shortcuts would be split.

    [b]Examples[/b]

    mezzotint inspect emoji-w4a8

    mezzotint inspect emoji-w4a8 --device cuda

    mezzotint inspect ./my-model --bits w8a8 --json
    """
    gpu = inputs.find_device(device, needed=False).startswith("cuda")
    with progress_bars() as progress:
        pipeline = inputs.load_model(model, "cpu", progress)
    from mezzotint.inspection import inspect as describe

    result = {**describe(pipeline, bits=bits, gpu=gpu), "device": "cuda" if gpu else "cpu"}
    show(result, _table(result, model), json)


def _table(result: dict[str, Any], model: str) -> Group:
    from rich.console import Group
    from rich.table import Table

    quantized = "units" not in result
    title = f"{model}: {result['model']} at {result['bits'].upper()}" if quantized else f"{model}: float"
    columns = ["layer", "kind", "shape", "weights", "inputs", *(["kernel"] if quantized else [])]
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    reasons: dict[str, int] = {}  # in the order in which they come up, numbered from 1
    for layer in result["layers"]:
        number = reasons.setdefault(layer["reason"], len(reasons) + 1) if quantized else 0
        table.add_row(*_cells(layer), *([f"{layer['kernel']} ({number})"] if quantized else []))
    where = "Why these kernels, on a GPU after optimize()" if result["device"] == "cuda" else "Why these kernels"
    why = [facts(where, {f"({number})": text for text, number in reasons.items()})] if quantized else []
    return Group(table, *why, facts("Totals", _totals(result)))


def _cells(layer: dict[str, Any]) -> tuple[str, ...]:
    shape = "" if layer["shape"] is None else "x".join(map(str, layer["shape"]))
    if layer["groups"]:
        shape += " split " + "+".join(map(str, layer["groups"]))
    by_time = f" at each of {layer['times']} times" if layer["times"] else ""
    activations = [layer["input_bits"], layer["other_bits"]] if layer["kind"] == "matmul" else [layer["input_bits"]]
    return (
        layer["name"],
        layer["kind"],
        shape,
        "" if layer["weight_bits"] is None else str(layer["weight_bits"]),
        ", ".join("float" if bits is None else str(bits) for bits in activations) + by_time,
    )


def _totals(result: dict[str, Any]) -> dict[str, str]:
    totals = result["totals"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(totals["layers"].items()))
    rows = {"layers on integers": kinds, "modules in float": str(len(result["float_modules"]))}
    if "kernels" in totals:
        if result["correction"] != "none":
            rows["correction"] = (
                f"{result['correction']}: samplers take the measured quantization noise out of every step"
            )
        rows["kernels"] = ", ".join(f"{count} {name}" for name, count in sorted(totals["kernels"].items()))
        if result["device"] == "cuda":
            rows["kernels"] += "; in calls of a network that nothing optimized, plain ones: reference"
        smaller = totals["float_bytes"] / totals["bytes"]
        rows["network"] = f"{size(totals['float_bytes'])} -> {size(totals['bytes'])} ({smaller:.2f}x smaller)"
        for name, part in result["parts"].items():
            rows[name] = f"{part['bits'].upper()}, {part['layers']} layers on integers, {size(part['bytes'])}"
        rows["whole pipeline"] = size(totals["pipeline_bytes"])
        rows["sizes"] = (
            f"of files; without the header, which names the tensors, the network takes {size(totals['tensor_bytes'])}, "
            f"as tables and mezzotint bench count it"
        )
    else:
        units = Counter(unit["kind"] for unit in result["units"])
        rows["units"] = ", ".join(f"{count} {kind}" for kind, count in sorted(units.items()))
        rows["split shortcuts"] = str(len(result["split_shortcuts"]))
        rows["network"] = size(totals["float_bytes"])
    return rows
