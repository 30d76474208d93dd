"""Exported graphs as functions of tensors, in ONNX Runtime or OpenVINO, on the CPU.

    runtime    reads                   computes quantized products with
    ort        .onnx                   MatMulIntegerToFloat, after `lowering`
    openvino   .onnx, .xml with .bin   its low-precision transformations of the QDQ pattern

Both get as many threads as torch has, and compute in float32 around the integers: OpenVINO would take bfloat16 where
the CPU has it, which changes images.

On x86 without VNNI the fast product of unsigned and signed bytes adds pairs in int16, where they saturate. As with our
oneDNN kernel, a product that saturates if anything does is computed once in each runtime. If it is wrong there, ONNX
Runtime gets unsigned weights, whose slower product is exact, and OpenVINO 8-bit weights as floats: the same
numbers without the speed, and one log line says so. (Their own settings for this, `session.x64quantprecision` and
`LP_TRANSFORMS_MODE`, break graphs like ours in ONNX Runtime 1.32 and OpenVINO 2026.4.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mezzotint.errors import ArtifactError, ConfigError
from mezzotint.export.extra import need
from mezzotint.export.lowering import lower
from mezzotint.export.onnx_graph import OPSET

logger = logging.getLogger("mezzotint")

Runtime = Literal["ort", "openvino"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)
Run = Callable[..., Tensor]  # the graph's inputs by position -> its output

OPENVINO = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # activations have grids of their own
}
IR_VERSION = 10  # of the ONNX file format, the one that came with opset 21
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
        raise ConfigError(
            f"{path}: runtime {runtime} reads {' and '.join(SUFFIXES[runtime])}; export it again for that"
        )
    return _open_ort(path, quantized) if runtime == "ort" else _open_openvino(path, quantized)


def _open_ort(path: Path, quantized: bool) -> Run:
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3  # errors only
    # Layers whose activations stay in float become MatMulNBits, which would round these to bytes; 1 is float32.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    model = _lowered(path) if quantized else str(path)
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"{path}: onnxruntime {ort.__version__} cannot run it: {error}") from error
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _lowered(path: Path) -> bytes:
    """The graph in `path` with integer products, serialized."""
    ir = need("onnx_ir")
    model = ir.load(path)
    if any(value.dtype == ir.DataType.INT4 for value in model.graph.initializers.values()):
        _tell_widened("ort")
    return lower(model, unsigned=_saturates("ort"))


def _open_openvino(path: Path, quantized: bool) -> Run:
    openvino = need("openvino")
    settings = {**OPENVINO, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        core = openvino.Core()
        model = core.read_model(path)
        if quantized and _saturates("openvino"):
            _dequantize_bytes_(model, openvino)
        _widen_(model, openvino)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ArtifactError(f"{path}: openvino {openvino.__version__} cannot run it: {error}") from error
    request = compiled.create_infer_request()

    def run(*inputs: Tensor) -> Tensor:
        found = request.infer([value.detach().cpu().numpy() for value in inputs])
        return torch.from_numpy(found[0].copy())  # the request writes its next result to the same place

    return run


def _widen_(model: Any, openvino: Any) -> None:
    """Makes the 4-bit constants of `model` 8-bit ones: OpenVINO multiplies integers of 8 bits only.

    With 4-bit weights it would dequantize them and compute in float, or quantize activations on grids of its own.
    """
    constant = need("openvino.opset13").constant
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i4:
            _tell_widened("openvino")
            shape = tuple(node.get_output_shape(0))
            node.output(0).replace(constant(_unpacked(node.data, shape)).output(0))


def _dequantize_bytes_(model: Any, openvino: Any) -> None:
    """Makes the 8-bit weights of `model` float constants, which are not multiplied as integers; 4-bit ones may stay."""
    constant = need("openvino.opset13").constant
    for node in model.get_ops():
        origin = node.input_value(0) if node.get_type_name() == "Convert" else None
        if origin is None or origin.get_node().get_type_name() != "Constant":
            continue
        if origin.get_element_type() == openvino.Type.i8:
            node.output(0).replace(constant(origin.get_node().data.astype("float32")).output(0))


def _unpacked(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """int8 numbers in `shape` from two's complement nibbles, the low one of each byte first."""
    flat = np.ascontiguousarray(data).reshape(-1).view(np.int8)
    both = np.stack([(flat << 4) >> 4, flat >> 4], axis=-1).reshape(-1)  # shifts of int8 keep the sign
    return both[: math.prod(shape)].reshape(shape)


@lru_cache
def _tell_widened(runtime: str) -> None:
    """Logs, once for each runtime, that 4-bit weights take 8 bits there."""
    logger.warning("%s: multiplies bytes only, so 4-bit weights take 8 bits in memory; the file keeps 4", runtime)


@lru_cache
def _saturates(runtime: str) -> bool:
    """Whether `runtime` loses sums of the largest products of codes on this processor; logged where it does."""
    model, x, expected = extreme_product()
    if runtime == "ort":
        ort, ir = need("onnxruntime"), need("onnx_ir")
        session = ort.InferenceSession(lower(ir.from_proto(model)), providers=["CPUExecutionProvider"])
        found = session.run(None, {"x": x})[0]
    else:
        core = need("openvino").Core()
        found = core.compile_model(core.read_model(model.SerializeToString()), "CPU", OPENVINO)(x)[0]
    saturates = not np.array_equal(found, expected)
    if saturates:
        how = "the slower product of unsigned bytes" if runtime == "ort" else "float32 products of the same numbers"
        logger.warning("%s: products of bytes saturate on this processor (no VNNI); it takes %s", runtime, how)
    return saturates


def extreme_product() -> tuple[Any, np.ndarray, np.ndarray]:
    """A QDQ product of the largest codes as an ONNX model, its input x, and the result: 64 * 255 * 127 everywhere."""
    onnx = need("onnx")
    helper, numbers, kind = onnx.helper, onnx.numpy_helper.from_array, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero_point"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero_point"], ["x_hat"]),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["weight"], axis=1),
        helper.make_node("MatMul", ["x_hat", "weight"], ["y"]),
    ]
    constants = {
        "x_scale": np.float32(1),
        "x_zero_point": np.uint8(0),
        "codes": np.full((64, 32), 127, np.int8),
        "scale": np.ones(32, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "extremes",
        [helper.make_tensor_value_info("x", kind, ["batch", 64])],
        [helper.make_tensor_value_info("y", kind, ["batch", 32])],
        [numbers(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return model, np.full((2, 64), 255, np.float32), np.full((2, 32), 64 * 255 * 127, np.float32)
