"""Exported graphs as functions of tensors, in ONNX Runtime or OpenVINO, on the CPU.

    runtime    reads                   computes quantized products with
    ort        .onnx                   MatMulIntegerToFloat, after `lowering`
    openvino   .onnx, .xml with .bin   its low-precision transformations of the QDQ pattern

Both get as many threads as torch has, and compute in float32 around the integers: OpenVINO would take bfloat16 where
the CPU has it, which changes images.

On x86 without VNNI the fast product of unsigned and signed bytes adds pairs in int16, where they saturate. ONNX Runtime
is told to take the slower, exact one there (`session.x64quantprecision`). OpenVINO has no such setting; see
`check_exact`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mezzotint.errors import ArtifactError, ConfigError
from mezzotint.export.extra import need
from mezzotint.export.lowering import lower

logger = logging.getLogger("mezzotint")

Runtime = Literal["ort", "openvino"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)
Run = Callable[..., Tensor]  # the graph's inputs by position -> its output

SUFFIXES: dict[str, tuple[str, ...]] = {"ort": (".onnx",), "openvino": (".onnx", ".xml")}


def check_runtime(runtime: str) -> Runtime:
    """`runtime` if there is such a one. ConfigError otherwise."""
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime: there is no {runtime!r}; choose one of {', '.join(RUNTIMES)}")
    return runtime  # type: ignore[return-value]


def open_graph(path: Path, runtime: Runtime, *, quantized: bool) -> Run:
    """The graph in `path` as a function of its inputs, tensors on the CPU.

    Args:
        quantized: whether there are integers in it; it decides how ONNX Runtime is prepared.

    Raises:
        MissingExtraError: the runtime is not installed.
        ConfigError: the runtime does not read files of this kind.
        ArtifactError: the runtime refuses the graph.
    """
    if path.suffix not in SUFFIXES[runtime]:
        raise ConfigError(f"{path}: runtime {runtime} reads {' and '.join(SUFFIXES[runtime])}; export it again for that")
    return _open_ort(path, quantized) if runtime == "ort" else _open_openvino(path)


def _open_ort(path: Path, quantized: bool) -> Run:
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.x64quantprecision", "1")
    model = lower(path) if quantized else str(path)
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (RuntimeError, ValueError, *_ort_errors(ort)) as error:
        raise ArtifactError(f"{path}: onnxruntime {ort.__version__} cannot run it: {error}") from error
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _ort_errors(ort: Any) -> tuple[type[Exception], ...]:
    """The exceptions of ONNX Runtime, which have no common base."""
    found = vars(ort.capi.onnxruntime_pybind11_state).values()
    return tuple(kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception))


def _open_openvino(path: Path) -> Run:
    openvino = need("openvino")
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise ArtifactError(f"{path}: openvino {openvino.__version__} cannot run it: {error}") from error
    request = compiled.create_infer_request()

    def run(*inputs: Tensor) -> Tensor:
        found = request.infer([value.detach().cpu().numpy() for value in inputs])
        return torch.from_numpy(found[0].copy())  # the request writes its next result to the same place

    return run
