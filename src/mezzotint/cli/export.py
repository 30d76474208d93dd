"""`mezzotint export`: a quantized or float model for ONNX Runtime or OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.cli import inputs, options
from mezzotint.cli.output import facts, guarded, progress_bars, show, size

if TYPE_CHECKING:
    from mezzotint.export.record import ExportRecord


@guarded
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A quantized model's folder, or a float model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the graphs.")],
    to: Annotated[str, typer.Option(help="[b]onnx[/b] or [b]openvino[/b].")] = "onnx",
    overwrite: options.Overwrite = False,
    json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Write a model as graphs that run without PyTorch's networks.

    One QDQ graph for every network (denoiser, first stage, text encoder), its
    weights stored as integers of 8 or 4 bits, with a dynamic batch. ONNX files
    run in ONNX Runtime, on x86 and ARM64, and in OpenVINO.

    [b]Examples[/b]

    mezzotint export emoji-w4a8 --to onnx -o emoji-onnx

    mezzotint sample emoji-onnx --runtime ort --seeds 0..15
    """
    with progress_bars() as progress:
        pipeline = inputs.load_model(model, "cpu", progress)
        from mezzotint.export import export_pipeline

        record = export_pipeline(pipeline, out, to, overwrite=overwrite, progress=progress)
    result: dict[str, Any] = {"out": str(out), **record.model_dump(mode="json", include={"target", "opset", "files"})}
    result["graphs"] = {name: {"file": graph.file, "bits": graph.bits} for name, graph in record.graphs.items()}
    show(result, facts("Exported", _rows(record, out)), json)


def _rows(record: ExportRecord, out: Path) -> dict[str, str]:
    rows = {"folder": str(out), "format": f"{record.target}, ONNX opset {record.opset}"}
    for name, graph in record.graphs.items():
        stem = Path(graph.file).stem
        count = sum(file.bytes for path, file in record.files.items() if Path(path).name.split(".")[0] == stem)
        rows[name] = f"{(graph.bits or 'float').upper()}, {size(count)} in {graph.file}"
    runtime = "ort" if record.target == "onnx" else "openvino"
    rows["run it"] = f"mezzotint sample {out} --runtime {runtime}"
    return rows
