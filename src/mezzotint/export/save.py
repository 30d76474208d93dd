"""Export a pipeline: one graph for every network, tokenizer and scheduler as data, a record of it all.

    export.json             what is what, see `record`
    unet.onnx               or unet.xml with unet.bin (OpenVINO); likewise vae or vqvae, text_encoder, class_embedder
    tokenizer/              as transformers writes it
    prompts.json            if there is one beside the model

Both targets begin as the ONNX graph of PyTorch's exporter; OpenVINO's converter reads that.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from mezzotint.artifact.atomic import atomic_folder
from mezzotint.artifact.load import file_record
from mezzotint.artifact.save import check_output
from mezzotint.artifact.skeleton import config_of
from mezzotint.base import base_info
from mezzotint.errors import ConfigError
from mezzotint.export.extra import need
from mezzotint.export.graphs import Graph, graphs_of
from mezzotint.export.onnx_graph import OPSET, write_onnx
from mezzotint.export.record import RECORD_NAME, TARGETS, ExportRecord, GraphRecord, SchedulerRecord, write_record
from mezzotint.manifest import Manifest
from mezzotint.models.denoiser import network_of
from mezzotint.models.families import family_of, model_folder
from mezzotint.models.prompts import PROMPTS_FILE
from mezzotint.progress import NullProgress, Progress
from mezzotint.sampling.correction import correction_of
from mezzotint.sampling.defaults import default_sampler

TOKENIZER = "tokenizer"
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}


def export_pipeline(
    pipeline: DiffusionPipeline,
    folder: str | Path,
    to: str = "onnx",
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportRecord:
    """Writes the networks of `pipeline`, quantized or float, to `folder` and returns the record of what is there.

    Atomic, as `save_quantized`.

    Args:
        to: "onnx" or "openvino".
        overwrite: replace what an earlier export left in `folder`. Anything else that is there is never replaced.

    Raises:
        ConfigError: `to` is neither.
        OutputError: `folder` exists, or cannot be written.
        MissingExtraError: a package of the extra `export` is not installed.
        ModelError: a network with inputs that graphs do not have.
    """
    if to not in TARGETS:
        raise ConfigError(f"to: there is no format {to!r}; choose one of {', '.join(TARGETS)}")
    folder = check_output(folder, overwrite, RECORD_NAME, "an export")
    for package in ("onnx", "onnxscript", *(("openvino",) if to == "openvino" else ())):
        need(package)
    progress, manifest, graphs = progress or NullProgress(), _manifest(pipeline), graphs_of(pipeline)
    progress.start(f"export to {to}", len(graphs))
    with atomic_folder(folder) as partial:
        for name, graph in graphs.items():
            _write(graph, partial / f"{name}{SUFFIX[to]}")
            progress.advance()
        _copy_data(pipeline, partial)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        record = ExportRecord(
            target=to,
            opset=OPSET,
            family=family_of(pipeline),
            base=manifest.base if manifest else base_info(pipeline),
            graphs={name: _graph_record(name, graph, to, manifest) for name, graph in graphs.items()},
            scheduler=_scheduler_record(pipeline),
            sampler=(manifest.sampler if manifest else {}) or default_sampler(pipeline).model_dump(mode="json"),
            conditions=(manifest.config.get("conditions") if manifest else None) or (),
            noise_correction=correction_of(network_of(pipeline)),
            files={path.relative_to(partial).as_posix(): file_record(path) for path in files},
        )
        write_record(record, partial)
    progress.finish()
    return record


def _write(graph: Graph, path: Path) -> None:
    """Writes one graph in the format that the suffix of `path` says."""
    if path.suffix == ".onnx":
        write_onnx(graph, path)
        return
    openvino, original = need("openvino"), path.with_suffix(".onnx")
    write_onnx(graph, original)
    openvino.save_model(openvino.convert_model(original), path, compress_to_fp16=False)
    for left in original.parent.glob(f"{original.name}*"):
        left.unlink()


def _copy_data(pipeline: Any, folder: Path) -> None:
    """What is no network: the tokenizer, and the prompts beside the model."""
    tokenizer = pipeline.components.get(TOKENIZER)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / TOKENIZER)
    source = model_folder(pipeline)
    if source is not None and (source / PROMPTS_FILE).is_file():
        shutil.copyfile(source / PROMPTS_FILE, folder / PROMPTS_FILE)


def _manifest(pipeline: DiffusionPipeline) -> Manifest | None:
    """What quantization recorded; None of a float model."""
    found = getattr(network_of(pipeline), "quantization", None)
    return found if isinstance(found, Manifest) else None


def _graph_record(name: str, graph: Graph, to: str, manifest: Manifest | None) -> GraphRecord:
    quantized = manifest.networks if manifest else {}
    return GraphRecord(
        file=f"{name}{SUFFIX[to]}",
        kind=type(graph.module).__name__,
        bits=quantized[name].bits if name in quantized else None,
        inputs=tuple(graph.inputs),
        output=graph.output,
        config=_plain(config_of(graph.module)),
    )


def _scheduler_record(pipeline: Any) -> SchedulerRecord:
    scheduler = pipeline.scheduler
    return SchedulerRecord(kind=type(scheduler).__name__, config=_plain(dict(scheduler.config)))


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """`config` as JSON holds it, without what libraries note about themselves and this machine."""
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    return json.loads(json.dumps(kept, default=str))
