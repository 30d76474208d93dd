"""Integer layers: they agree with the simulated arithmetic, with any kernel, after any journey."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mezzotint.errors import KernelError
from mezzotint.grid.affine import dequantize, fake_quantize
from mezzotint.grid.spec import GridSpec, activation_spec, weight_spec
from mezzotint.kernels import onednn
from mezzotint.layers.integer import IntConv2d, IntLinear, IntMatMul
from mezzotint.layers.spec import LayerSpec
from typecheck import switched_off

EPS = torch.finfo(torch.float32).eps
VNNI = onednn.probe(255, 128) is None
KERNELS = ["auto", "exact-fp32", "reference"]


def parts_of(
    shape: tuple[int, ...], weight: GridSpec, inputs: GridSpec | None, bias: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Random parts of a layer, as `from_parts` takes them."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(weight.quant_min, weight.quant_max + 1, shape, generator=g)
    parts = {
        "weight_codes": codes.to(torch.int8),
        "weight_scale": torch.rand(weight.n_groups, shape[0], generator=g) * 0.1 + 0.001,
        "bias": torch.randn(shape[0], generator=g) if bias else None,
    }
    if inputs is not None:
        top = inputs.quant_max
        parts["input_scale"] = torch.rand(inputs.n_groups, generator=g) * 4 / top + 1 / top
        parts["input_zero_point"] = torch.randint(0, top + 1, (inputs.n_groups,), generator=g).to(torch.int32)
    return parts


def conv2d(weight: GridSpec, inputs: GridSpec | None, shape: tuple[int, ...], **more: Any) -> Any:
    bias, seed = more.pop("bias", True), more.pop("seed", 0)
    spec = LayerSpec(kind="conv2d", weight=weight, input=inputs)
    return IntConv2d.from_parts(spec, **parts_of(shape, weight, inputs, bias, seed), **more)


def linear(weight: GridSpec, inputs: GridSpec | None, shape: tuple[int, int], **more: Any) -> Any:
    spec = LayerSpec(kind="linear", weight=weight, input=inputs)
    return IntLinear.from_parts(spec, **parts_of(shape, weight, inputs), **more)


def matmul(a_bits: int = 8, b_bits: int = 8, **more: Any) -> Any:
    spec = LayerSpec(kind="matmul", input=activation_spec(a_bits), other=activation_spec(b_bits))
    zeros = [torch.tensor([2**bits // d], dtype=torch.int32) for bits, d in ((a_bits, 2), (b_bits, 3))]
    scales = [torch.tensor([4 / 2**bits]) for bits in (a_bits, b_bits)]
    return IntMatMul.from_parts(
        spec, a_scale=scales[0], a_zero_point=zeros[0], b_scale=scales[1], b_zero_point=zeros[1], **more
    )


def simulated_operands(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Float input and weight of the simulated twin, straight from the grid functions."""
    zero = torch.zeros_like(layer.weight_scale, dtype=torch.int32)
    weight = dequantize(layer.weight_codes(), layer.weight_scale, zero, layer.weight_grid)
    if layer.spec.input is None:
        return x, weight
    return fake_quantize(x, layer.input_scale, layer.input_zero_point, layer.spec.input), weight


def assert_equal_up_to_the_sum(y: Tensor, simulated: Tensor, sum_of_sizes: Tensor, terms: int) -> None:
    """|y - simulated| within the rounding of a float32 sum of `terms` terms, each of four roundings."""
    bound = (terms + 6) * EPS * sum_of_sizes
    excess = (y - simulated).abs() - bound
    assert excess.max() <= 0, f"off by {(y - simulated).abs().max():.2e}"


@settings(deadline=None, max_examples=40)
@given(
    bits=st.tuples(st.integers(2, 8), st.sampled_from([None, 4, 6, 8])),
    groups=st.sampled_from([(), (5, 7), (1, 3, 2)]),
    kernel_size=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    kernel=st.sampled_from(KERNELS),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_conv2d_equals_the_simulated_layer(
    bits: tuple[int, int | None],
    groups: tuple[int, ...],
    kernel_size: int,
    stride: int,
    kernel: str,
    bias: bool,
    seed: int,
) -> None:
    channels = sum(groups) or 11
    weight = weight_spec(bits[0], groups)
    inputs = None if bits[1] is None else activation_spec(bits[1], groups)
    geometry = {"stride": stride, "padding": kernel_size // 2}
    shape = (6, channels, kernel_size, kernel_size)
    layer = conv2d(weight, inputs, shape, kernel=kernel, bias=bias, seed=seed, **geometry)
    x = torch.randn(2, channels, 7, 6, generator=torch.Generator().manual_seed(seed))
    x_hat, w_hat = simulated_operands(layer, x)
    y = layer(x)
    assert y.dtype == torch.float32
    sizes = F.conv2d(x_hat.abs(), w_hat.abs(), None if layer.bias is None else layer.bias.abs(), **geometry)
    simulated = F.conv2d(x_hat, w_hat, layer.bias, **geometry)
    assert_equal_up_to_the_sum(y, simulated, sizes, w_hat[0].numel() + len(groups))


@settings(deadline=None, max_examples=40)
@given(
    bits=st.tuples(st.integers(2, 8), st.sampled_from([None, 4, 8])),
    leading=st.sampled_from([(3,), (2, 5), (2, 1, 3)]),
    kernel=st.sampled_from(KERNELS),
    seed=st.integers(0, 999),
)
def test_linear_equals_the_simulated_layer(
    bits: tuple[int, int | None], leading: tuple[int, ...], kernel: str, seed: int
) -> None:
    inputs = None if bits[1] is None else activation_spec(bits[1])
    layer = linear(weight_spec(bits[0]), inputs, (9, 37), kernel=kernel)
    x = torch.randn(*leading, 37, generator=torch.Generator().manual_seed(seed))
    x_hat, w_hat = simulated_operands(layer, x)
    sizes = F.linear(x_hat.abs(), w_hat.abs(), layer.bias.abs())
    assert_equal_up_to_the_sum(layer(x), F.linear(x_hat, w_hat, layer.bias), sizes, 37)


@settings(deadline=None, max_examples=30)
@given(bits=st.tuples(st.integers(4, 8), st.integers(4, 8)), kernel=st.sampled_from(KERNELS), seed=st.integers(0, 999))
def test_matmul_equals_the_simulated_layer(bits: tuple[int, int], kernel: str, seed: int) -> None:
    layer = matmul(*bits, kernel=kernel)
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, 5, 9, generator=g), torch.randn(2, 3, 4, 9, generator=g).transpose(-1, -2)
    a_hat = fake_quantize(a, layer.a_scale, layer.a_zero_point, layer.a_grid)
    b_hat = fake_quantize(b, layer.b_scale, layer.b_zero_point, layer.b_grid)
    assert_equal_up_to_the_sum(layer(a, b), a_hat @ b_hat, a_hat.abs() @ b_hat.abs(), 9)


@pytest.mark.parametrize("groups", [(), (16, 32)])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_kernel_gives_the_same_numbers(groups: tuple[int, ...], bits: int) -> None:
    weight, inputs = weight_spec(bits, groups), activation_spec(8, groups)
    x = torch.randn(2, 48, 8, 8)
    layers = [conv2d(weight, inputs, (20, 48, 3, 3), padding=1, kernel=kernel) for kernel in KERNELS]
    results = [layer(x) for layer in layers]
    assert all(torch.equal(y, results[-1]) for y in results)
    assert all(torch.equal(layers[0](x.contiguous(memory_format=torch.channels_last)), y) for y in results)


def test_grids_of_weights_and_input_may_differ_in_groups() -> None:
    x = torch.randn(2, 12, 5, 5)
    for weight_groups, input_groups in (((5, 7), ()), ((), (5, 7))):
        weight, inputs = weight_spec(4, weight_groups), activation_spec(8, input_groups)
        layer = conv2d(weight, inputs, (6, 12, 1, 1))
        x_hat, w_hat = simulated_operands(layer, x)
        sizes = F.conv2d(x_hat.abs(), w_hat.abs(), layer.bias.abs())
        assert_equal_up_to_the_sum(layer(x), F.conv2d(x_hat, w_hat, layer.bias), sizes, 14)


def test_grouped_convolution() -> None:
    layer = conv2d(weight_spec(8), activation_spec(8), (6, 4, 3, 3), padding=1, conv_groups=3)
    x = torch.randn(2, 12, 6, 6)
    x_hat, w_hat = simulated_operands(layer, x)
    sizes = F.conv2d(x_hat.abs(), w_hat.abs(), layer.bias.abs(), padding=1, groups=3)
    assert_equal_up_to_the_sum(layer(x), F.conv2d(x_hat, w_hat, layer.bias, padding=1, groups=3), sizes, 36)
    assert "conv_groups=3" in layer.kernel_report().reason


def every_layer() -> list[tuple[Any, tuple[Tensor, ...]]]:
    """One layer of each sort, with inputs."""
    a8, split = activation_spec(8), (5, 7)
    x, tokens = torch.randn(2, 12, 6, 6), torch.randn(2, 5, 12)
    return [
        (conv2d(weight_spec(4), a8, (6, 12, 3, 3), padding=1), (x,)),
        (conv2d(weight_spec(4, split), activation_spec(8, split), (6, 12, 1, 1), bias=False), (x,)),
        (conv2d(weight_spec(3), None, (6, 12, 3, 3)), (x,)),
        (linear(weight_spec(8), a8, (7, 12)), (tokens,)),
        (linear(weight_spec(8), None, (7, 12)), (tokens,)),
        (matmul(), (tokens, tokens.transpose(-1, -2))),
    ]


@pytest.mark.parametrize("which", range(6))
def test_copies_pickles_and_state_dicts_give_equal_outputs(which: int) -> None:
    layer, inputs = every_layer()[which]
    y = layer(*inputs)
    assert torch.equal(copy.deepcopy(layer)(*inputs), y)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(*inputs), y)
    state = layer.state_dict()
    assert all(not value.dtype.is_floating_point or value.dtype == torch.float32 for value in state.values())
    with torch.no_grad():
        blank = copy.deepcopy(layer)
        for value in blank.buffers():
            value.zero_()
    blank.prepare_kernel_()
    blank.load_state_dict(state)  # must drop the operands it has just made
    assert torch.equal(blank(*inputs), y)


@pytest.mark.parametrize("which", range(6))
def test_moving_drops_the_operands_and_casting_keeps_the_grids(which: int) -> None:
    layer, inputs = every_layer()[which]
    y = layer(*inputs)
    assert layer._operands is not None
    layer.to("cpu")
    assert layer._operands is None
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.half()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert torch.equal(layer(*inputs), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    for layer, inputs in every_layer():
        low = [x.to(dtype) for x in inputs]
        assert layer(*low).dtype == dtype
        assert torch.equal(layer(*low), layer(*[x.float() for x in low]).to(dtype))


@pytest.mark.parametrize("spec_groups", [(), (5, 7)])
@pytest.mark.parametrize("has_input", [True, False])
def test_an_empty_layer_on_meta_is_filled_from_a_state_dict(spec_groups: tuple[int, ...], has_input: bool) -> None:
    inputs = activation_spec(8, spec_groups) if has_input else None
    full = conv2d(weight_spec(3, spec_groups), inputs, (6, 12, 3, 3), padding=1, stride=2)
    with torch.device("meta"):
        empty = IntConv2d(full.spec, 12, 6, 3, padding=1, stride=2)
    assert empty.kernel in repr(empty)
    empty.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(1, 12, 7, 7)
    assert torch.equal(empty(x), full(x))


def test_like_takes_the_shape_of_a_float_layer() -> None:
    weight, inputs = weight_spec(4), activation_spec(8)
    conv = nn.Conv2d(6, 9, (3, 1), stride=(2, 1), padding=(1, 0), bias=False, device="meta")
    layer = IntConv2d.like(conv, LayerSpec(kind="conv2d", weight=weight, input=inputs))
    full = conv2d(weight, inputs, (9, 6, 3, 1), stride=(2, 1), padding=(1, 0), bias=False)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in full.state_dict().items()}
    assert layer.geometry == full.geometry
    assert layer.weight_packed.is_meta
    other = IntLinear.like(nn.Linear(5, 3), LayerSpec(kind="linear", weight=weight, input=inputs))
    assert other(torch.zeros(2, 5)).shape == (2, 3)


def test_the_weights_at_rest_take_their_bits() -> None:
    for bits in range(2, 9):
        layer = conv2d(weight_spec(bits), activation_spec(8), (6, 12, 3, 3))
        assert layer.weight_packed.numel() == 6 * 12 * 9 * bits / 8
    assert set(layer.state_dict()) == {"weight_packed", "weight_scale", "input_scale", "input_zero_point", "bias"}


def test_no_gradient_flows() -> None:
    layer, (x,) = every_layer()[0]
    assert not layer(x.requires_grad_()).requires_grad


def test_repr_says_bits_and_kernel() -> None:
    weight, inputs = weight_spec(4, (5, 7)), activation_spec(8, (5, 7))
    assert "w4a8, groups=(5, 7), kernel=reference" in repr(conv2d(weight, inputs, (6, 12, 1, 1), kernel="reference"))
    assert "w3a32, kernel=float32" in repr(conv2d(weight_spec(3), None, (6, 12, 1, 1)))
    assert "a8 x a4, kernel=" in repr(matmul(8, 4))
    assert "a8 x a4, kernel=exact-fp32" in repr(matmul(8, 4, kernel="exact-fp32"))


@pytest.mark.skipif(not VNNI, reason="no VNNI on this processor")
def test_auto_takes_onednn() -> None:
    for layer, _ in every_layer():
        if layer.spec.kind != "matmul" and layer.spec.input is not None:
            assert layer.kernel_report().name == "onednn"


def test_a_layer_compiles_without_graph_breaks() -> None:
    with switched_off():
        for which in (0, 1, 5):
            layer, inputs = every_layer()[which]
            y = layer(*inputs)
            assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(*inputs), y)


def test_errors_name_the_thing() -> None:
    weight, inputs = weight_spec(4), activation_spec(8)
    parts = parts_of((6, 12, 3, 3), weight, inputs)
    spec = LayerSpec(kind="conv2d", weight=weight, input=inputs)
    with pytest.raises(KernelError, match=r"IntConv2d.weight_scale must be torch.float32 \[1, 6\], got .* \[6\]"):
        IntConv2d.from_parts(spec, **{**parts, "weight_scale": torch.ones(6)})
    with pytest.raises(KernelError, match=r"IntConv2d.input_scale must be torch.float32 \[1\], got nothing"):
        IntConv2d.from_parts(spec, **{**parts, "input_scale": None})
    with pytest.raises(KernelError, match=r"input_zero_point must be torch.int32 \[1\], got torch.int64 \[1\]"):
        IntConv2d.from_parts(spec, **{**parts, "input_zero_point": torch.zeros(1, dtype=torch.int64)})
    with pytest.raises(KernelError, match=r"weight_codes must be torch.int8 \[6, 12, 3, 3\], got torch.uint8"):
        IntConv2d.from_parts(spec, **{**parts, "weight_codes": torch.zeros(6, 12, 3, 3, dtype=torch.uint8)})
    with pytest.raises(KernelError, match="padding must be a number or two, got 'same'"):
        IntConv2d.from_parts(spec, **parts, padding="same")
    with pytest.raises(KernelError, match="padding_mode must be 'zeros', got 'circular'"):
        IntConv2d.like(nn.Conv2d(12, 6, 3, padding_mode="circular"), spec)
    with pytest.raises(KernelError, match=r"input groups \(5, 7\) and weight groups \(6, 6\) differ"):
        conv2d(weight_spec(4, (6, 6)), activation_spec(8, (5, 7)), (6, 12, 1, 1))
    with pytest.raises(KernelError, match=r"groups \(5, 5\) must cover 12 channels"):
        conv2d(weight_spec(4), activation_spec(8, (5, 5)), (6, 12, 1, 1))
    with pytest.raises(KernelError, match=r"linear: groups of input channels are for conv2d, got \(5, 7\)"):
        linear(weight_spec(4), activation_spec(8, (5, 7)), (6, 12))
    with pytest.raises(KernelError, match="activations need an unsigned grid"):
        linear(weight_spec(4), GridSpec(bits=8, signed=True), (6, 12))
    with pytest.raises(KernelError, match="weights need a signed grid with axis=0"):
        IntLinear(LayerSpec(kind="linear", input=inputs), 12, 6)
    with pytest.raises(KernelError, match="matmul: each input needs a grid"):
        IntMatMul(LayerSpec(kind="matmul", input=inputs))
    with pytest.raises(KernelError, match=r"x_q must be \[B, 12, H, W\], got \[1, 11, 8, 8\]"):
        IntConv2d.from_parts(spec, **parts)(torch.zeros(1, 11, 8, 8))


@pytest.mark.gpu
def test_layers_give_the_same_numbers_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of the layers whose inputs stay in float
    for layer, inputs in every_layer():
        y = layer(*inputs)
        moved = copy.deepcopy(layer).to("cuda")(*[x.cuda() for x in inputs]).cpu()
        if layer.spec.input is None:
            torch.testing.assert_close(moved, y, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(moved, y)
