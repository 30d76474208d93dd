"""Every integer layer as a graph: the same numbers in both runtimes, and weights that stay integers in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from measures import decibels
from mezzotint.errors import ConfigError
from mezzotint.export import onnx_graph, runtimes
from mezzotint.export.graphs import Graph
from mezzotint.export.lowering import CONTRIB, lower
from mezzotint.export.onnx_graph import write_onnx
from mezzotint.export.runtimes import RUNTIMES, extreme_product, open_graph
from mezzotint.export.save import _write
from mezzotint.grid.spec import activation_spec, weight_spec
from mezzotint.layers.int_timed import IntTimedLinear
from mezzotint.layers.integer import IntConv2d, IntLinear, IntMatMul
from mezzotint.layers.spec import LayerSpec
from mezzotint.layers.timed import TAG

CHANNELS, SIZE = 12, 7
EXACT_DB = 140  # integer sums are exact; one float32 product and sum follow, fused or not
FLOAT_DB = 110  # float32 sums of a hundred terms


def conv(bits: int = 8, activation: int | None = 8, groups: tuple[int, ...] = (), size: int = 3, **window: Any) -> Any:
    spec = LayerSpec(
        kind="conv2d",
        weight=weight_spec(bits, groups),
        input=None if activation is None else activation_spec(activation, groups),
    )
    top, count = 1 << (bits - 1), max(1, len(groups))
    grids: tuple[Any, Any] = (None, None)
    if activation is not None:
        steps = torch.rand(count) * 0.01 + 5.0 / (1 << activation)
        grids = (steps, torch.full((count,), (1 << activation) // 3, dtype=torch.int32))
    codes = torch.randint(-top, top, (10, CHANNELS, size, size), dtype=torch.int8)
    return IntConv2d.from_parts(spec, codes, torch.rand(count, 10) * 0.01 + 0.001, torch.randn(10), *grids, **window)


def linear(bits: int = 8, bias: bool = True, activation: bool = True) -> IntLinear:
    spec = LayerSpec(kind="linear", weight=weight_spec(bits), input=activation_spec(8) if activation else None)
    top = 1 << (bits - 1)
    codes = torch.randint(-top, top, (9, SIZE), dtype=torch.int8)
    scale, step, zero = torch.rand(1, 9) * 0.01 + 0.001, torch.tensor([0.02]), torch.tensor([100], dtype=torch.int32)
    grid = (step, zero) if activation else ()
    return IntLinear.from_parts(spec, codes, scale, torch.randn(9) if bias else None, *grid)


def matmul() -> IntMatMul:
    spec = LayerSpec(kind="matmul", input=activation_spec(8), other=activation_spec(8))
    zeros = [torch.tensor([zero], dtype=torch.int32) for zero in (120, 7)]
    return IntMatMul.from_parts(
        spec,
        a_scale=torch.tensor([0.02]),
        a_zero_point=zeros[0],
        b_scale=torch.tensor([0.03]),
        b_zero_point=zeros[1],
    )


class Product(nn.Module):
    """The picture with itself, so that every case takes one input."""

    def __init__(self, product: nn.Module) -> None:
        super().__init__()
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x.transpose(-1, -2))


class ByTime(nn.Module):
    """A time layer that reads one row of the picture, at one of two times."""

    def __init__(self) -> None:
        super().__init__()
        spec = LayerSpec(kind="linear", weight=weight_spec(8), input=activation_spec(8), times=2)
        codes, scale = torch.randint(-128, 128, (9, SIZE), dtype=torch.int8), torch.rand(1, 9) * 0.01 + 0.001
        grids = torch.tensor([0.02, 0.03]), torch.tensor([100, 7], dtype=torch.int32)
        self.layer = IntTimedLinear.from_parts(spec, codes, scale, torch.randn(9), *grids, hands_on=True)
        self.weight_grid = self.layer.weight_grid

    def forward(self, x: Tensor) -> Tensor:
        tag = TAG + (x[:, 0, 1, :1] > 0).float()
        return self.layer(torch.cat([x[:, 0, 0], tag], dim=1))


def cases() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "3x3": conv(padding=1),
        "even window, stride": conv(size=2, stride=2),
        "padded stride": conv(stride=2, padding=1),
        "dilated": conv(dilation=2, padding=2),
        "1x1": conv(size=1),
        "strided 1x1": conv(size=1, stride=2),
        "uneven padding": conv(padding=(2, 0)),
        "split": conv(groups=(8, 4), padding=1),
        "four bits": conv(4, padding=1),
        "split, three bits": conv(3, groups=(5, 7), size=1),
        "a4": conv(activation=4, padding=1),
        "linear": linear(),
        "linear without bias": linear(bias=False),
        "linear, four bits": linear(4),
        "linear, float activations": linear(activation=False),
        "by time, float product": ByTime(),
        "product": Product(matmul()),
        "float activations": conv(4, None, padding=1),
        "split, float activations": conv(8, None, groups=(8, 4), padding=1),
    }


def call(network: Any, x: Tensor) -> Tensor:
    return torch.cat([layer(x).flatten(1) for layer in network], dim=1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """All cases side by side in one graph: tracing costs by the graph."""
    torch.manual_seed(1)
    x = 2 * torch.randn(2, CHANNELS, SIZE, SIZE)
    return Graph(nn.ModuleList(cases().values()).eval(), call, {"x": x}, "y")


@pytest.fixture(scope="module")
def path(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers") / "layers.onnx"
    write_onnx(graph, path)
    return path


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_layer_gives_the_numbers_of_the_integer_layer(graph: Graph, path: Path, runtime: str, batch: int) -> None:
    torch.manual_seed(batch)
    x = 2 * torch.randn(batch, CHANNELS, SIZE, SIZE)
    found = open_graph(path, runtime, quantized=True)(x)
    start = 0
    for name, layer in cases().items():
        expected = layer(x).flatten(1)
        own = found[:, start : start + expected.shape[1]]
        start += expected.shape[1]
        floor = FLOAT_DB if "float" in name or (name, runtime) == ("product", "openvino") else EXACT_DB
        assert decibels(expected, own) > floor, (name, runtime)
    assert start == found.shape[1]


def test_the_plain_graph_runs_without_us(graph: Graph, path: Path) -> None:
    """ONNX Runtime runs the file as it is, in float where it finds no pattern."""
    [x] = graph.inputs.values()
    assert decibels(call(graph.module, x), open_graph(path, "ort", quantized=False)(x)) > FLOAT_DB


def test_weights_are_integers_in_the_file(path: Path) -> None:
    model = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    codes = [
        types[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in types
    ]
    layers = cases().values()
    grids = [layer.weight_grid for layer in layers if hasattr(layer, "weight_grid")]
    small = sum(grid.n_groups for grid in grids if grid.bits <= 4)
    assert codes.count(onnx.TensorProto.INT4) == small
    assert codes.count(onnx.TensorProto.INT8) == sum(grid.n_groups for grid in grids) - small
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert all(len(tensor.dims) <= 1 or tensor.dims[-2:] == [1, 1] for tensor in floats), "a weight is stored as floats"


def test_lowering_leaves_no_quantized_product_in_float(path: Path) -> None:
    import onnx_ir

    model = onnx.load_from_string(lower(onnx_ir.load(path)))
    produced = {node.output[0]: node.op_type for node in model.graph.node}
    activations = {"DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            assert produced.get(node.input[0]) not in activations, node.name
    products = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert all(node.domain == CONTRIB for node in products)
    count = sum(
        layer.weight_grid.n_groups for layer in cases().values() if getattr(layer, "input_scale", None) is not None
    )
    assert len(products) == count + 1  # and the product of two activations


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_that_saturates_is_told_to_be_exact(
    graph: Graph, path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the extreme product comes out wrong, another path is taken and gives the same numbers."""
    model, x, expected = extreme_product()
    monkeypatch.setattr(runtimes, "extreme_product", lambda: (model, x, expected + 1))
    runtimes._saturates.cache_clear()
    runtimes._tell_widened.cache_clear()
    try:
        [inputs] = graph.inputs.values()
        found = open_graph(path, runtime, quantized=True)(inputs)  # type: ignore[arg-type]
    finally:
        runtimes._saturates.cache_clear()
    assert "saturate on this processor" in caplog.text
    assert caplog.text.count(f"{runtime}: multiplies bytes only, so 4-bit weights take 8 bits in memory") == 1
    assert decibels(call(graph.module, inputs), found) > FLOAT_DB


def test_the_extreme_product_is_what_it_says() -> None:
    model, x, expected = extreme_product()
    onnx.checker.check_model(model, full_check=True)
    codes = onnx.numpy_helper.to_array(model.graph.initializer[2]).astype(np.int64)
    np.testing.assert_array_equal(x.astype(np.int64) @ codes, expected)
    assert np.iinfo(np.int16).max < 2 * 255 * 127


def test_openvino_files_have_integers_too(tmp_path: Path) -> None:
    layers = nn.ModuleList([conv(groups=(8, 4)), conv(4, padding=1), linear(), linear(4)]).eval()
    x = 2 * torch.randn(2, CHANNELS, SIZE, SIZE)
    _write(Graph(layers, call, {"x": x}, "y"), tmp_path / "layers.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers.bin", "layers.xml"]
    text = (tmp_path / "layers.xml").read_text()
    assert 'element_type="i4"' in text
    assert 'element_type="i8"' in text
    found = open_graph(tmp_path / "layers.xml", "openvino", quantized=True)(x)
    assert decibels(call(layers, x), found) > EXACT_DB


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_large_weights_lie_beside_the_file(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "INLINE_BYTES", 0)
    layers = nn.ModuleList([linear(), linear(4)])
    x = torch.randn(2, CHANNELS, SIZE)
    path = tmp_path / "large.onnx"
    write_onnx(Graph(layers.eval(), call, {"x": x}, "y"), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert decibels(call(layers, x), open_graph(path, runtime, quantized=True)(x)) > EXACT_DB


def test_a_runtime_names_what_it_reads(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers.xml: runtime ort reads .onnx"):
        open_graph(tmp_path / "layers.xml", "ort", quantized=True)
