"""One network as an ONNX file, by PyTorch's exporter.

Afterwards two things are done to the graph: weights of up to 4 bits become INT4 tensors (torch has no such type to
export), and the checker of ONNX reads the result with full shape inference.

Opset 21 is the first with 4-bit tensors. A later one would shut out runtimes and bring these graphs nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mezzotint.export.extra import need
from mezzotint.export.graphs import Graph
from mezzotint.export.qdq import small_weights

OPSET = 21
INLINE_BYTES = 1 << 30  # larger weights lie beside the file: protobuf ends at 2 GiB
_LARGEST_BATCH = 1 << 16


def write_onnx(graph: Graph, path: Path) -> None:
    """Writes `graph` to `path`, with weights of over a gigabyte in a file beside it."""
    for package in ("onnx", "onnxscript"):
        need(package)
    module, names = graph.traceable(), list(graph.inputs)
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with quiet_exporter():
        program: Any = torch.onnx.export(
            module,
            tuple(graph.inputs.values()),
            input_names=names,
            output_names=[graph.output],
            dynamic_shapes=(tuple({0: batch} for _ in names),),  # one entry for *inputs
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    _store_small_(program.model, small_weights(module))
    _forget_source_(program.model)
    large = sum(value.const_value.nbytes for value in program.model.graph.initializers.values()) > INLINE_BYTES
    program.save(path, external_data=large)
    need("onnx.checker").check_model(path, full_check=True)


def _store_small_(model: Any, names: set[str]) -> None:
    """Gives the codes called `names` the type INT4: two codes a byte."""
    ir, int4 = need("onnx_ir"), need("ml_dtypes").int4
    for name in names & model.graph.initializers.keys():  # equal weights are stored once, under one of their names
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy().astype(int4), dtype=ir.DataType.INT4, name=name)
        value.dtype = ir.DataType.INT4


def _forget_source_(model: Any) -> None:
    """Removes what the exporter notes of modules, source lines and this machine; names of weights say the layer."""
    for node in model.graph.all_nodes():
        for noted in (node, *node.outputs):
            noted.metadata_props.clear()
            noted.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keeps back what the exporters tell their developers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
