from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mezzotint.evaluation import cost
from mezzotint.grid.spec import activation_spec, weight_spec
from mezzotint.layers.spec import LayerSpec
from mezzotint.models.denoiser import example_inputs
from tiny import tiny_pipeline, tiny_unet


class Small(nn.Module):
    """A grouped, strided convolution and a linear layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(self.conv(x).mean(dim=(2, 3))))


def test_macs_of_convolution_and_of_a_layer_that_runs_twice() -> None:
    macs = cost.count_macs(Small(), torch.zeros(1, 4, 8, 8))
    assert macs == {"conv": 6 * 4 * 4 * (4 // 2) * 9, "linear": 2 * 36}


def test_macs_grow_with_the_batch_and_hooks_are_removed() -> None:
    network = Small()
    assert cost.count_macs(network, torch.zeros(5, 4, 8, 8))["conv"] == 5 * 6 * 16 * 18
    assert not network.conv._forward_hooks


def test_attention_products_of_a_denoiser() -> None:
    network = tiny_unet()
    macs = cost.count_macs(network, *example_inputs(network))
    tokens, channels = 8 * 8, 32
    products = {name: count for name, count in macs.items() if name.endswith((".qk", ".pv"))}
    assert "mid_block.attentions.0.processor.qk" in products
    assert set(products.values()) == {tokens * tokens * channels}
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert set(macs) - set(products) == set(layers)
    assert macs["conv_in"] == 16 * 16 * 16 * 3 * 9


def test_bit_operations_take_the_bits_of_each_product() -> None:
    macs = {"conv": 10, "linear": 100, "a.processor.pv": 1000, "left_float": 7}
    layers = {
        "conv": LayerSpec(kind="conv2d", weight=weight_spec(4), input=activation_spec(8)),
        "linear": LayerSpec(kind="linear", weight=weight_spec(4)),
        "a.processor.pv": LayerSpec(kind="matmul", input=activation_spec(8), other=activation_spec(6)),
    }
    assert cost.bit_operations(macs, layers) == 10 * 4 * 8 + 100 * 4 * 32 + 1000 * 6 * 8 + 7 * 32 * 32
    assert cost.bit_operations(macs, {}) == sum(macs.values()) * 1024


def test_bytes_are_those_of_the_stored_tensors() -> None:
    network = Small()
    floats = 6 * 2 * 9 + 6 + 36 + 6 + 4 * 6  # weights, biases; norm: weight, bias, mean, variance
    assert cost.stored_bytes(network) == 4 * floats + 8  # and one int64 counter
    assert cost.float_bytes(network, 2) == 2 * floats + 8
    assert cost.float_bytes(network.half(), 4) == 4 * floats + 8


def test_tied_tensors_count_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    network[1].weight = network[0].weight
    assert cost.stored_bytes(network) == 36
    network[1].weight = nn.Parameter(network[0].weight.data)  # another object on the same memory
    assert cost.stored_bytes(network) == 36


def test_integer_buffers_count_in_their_own_dtype() -> None:
    network = nn.Module()
    network.register_buffer("weight_packed", torch.zeros(10, dtype=torch.uint8))
    network.register_buffer("weight_scale", torch.zeros(1, 4))
    assert cost.stored_bytes(network) == 10 + 16


def test_pipeline_sizes_include_every_network() -> None:
    extra = nn.Linear(10, 10, bias=False)
    floats = SimpleNamespace(components={"unet": Small(), "vae": extra, "scheduler": object()})
    quantized = SimpleNamespace(components={"unet": nn.Linear(2, 2, bias=False), "vae": extra, "scheduler": object()})
    sizes = cost.pipeline_sizes(floats, quantized)
    assert sizes.fp32 == cost.float_bytes(Small(), 4) + 400
    assert sizes.quantized == 16 + 400
    assert sizes.ratio == pytest.approx(sizes.fp32 / 416)


class Clocked(nn.Module):
    """Moves a clock that others read by the given seconds, one entry a call."""

    def __init__(self, clock: list[float], seconds: list[float]) -> None:
        super().__init__()
        self.clock, self.seconds = clock, iter(seconds)

    def forward(self, x: Tensor) -> Tensor:
        self.clock[0] += next(self.seconds)
        return x


def test_latency_is_the_median_after_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    networks = [Clocked(clock, [90.0, 3.0, 4.0, 50.0]), Clocked(clock, [80.0, 2.0, 1.0, 2.0])]
    found = cost.measure_latency(*networks, torch.zeros(3, 1), warmup=1, runs=3)
    assert (found.float_seconds, found.quantized_seconds, found.speedup) == (4.0, 2.0, 2.0)
    assert (found.batch, found.runs, found.threads) == (3, 3, torch.get_num_threads())


def test_speedup_is_float_time_by_quantized_time() -> None:
    found = cost.Latency(float_seconds=3.0, quantized_seconds=2.0, batch=1, runs=1, device="cpu", threads=1)
    assert found.speedup == 1.5


def test_real_pipeline_counts_its_unet() -> None:
    pipeline = tiny_pipeline()
    parameters = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    assert cost.pipeline_sizes(pipeline, pipeline).fp32 == 4 * parameters
