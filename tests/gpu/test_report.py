"""What a lowered network says of its layers is what its graph does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from integer_networks import fresh, integer_network
from mezzotint.cli.bench_gpu import count_kernels
from mezzotint.gpu.network import LoweredCalls, LoweringConfig, lower_network_, lowered_report
from mezzotint.kernels.contract import KernelReport
from mezzotint.kernels.triton import attention as kernels
from mezzotint.layers.int_base import IntLayer
from mezzotint.models.denoiser import example_inputs

pytestmark = pytest.mark.usefixtures("traceable")

ON_CODES = LoweringConfig(attention="int8")
SELF, CROSS = (f"mid_block.attentions.0.transformer_blocks.0.attn{number}" for number in (1, 2))
IF_ONE_KEY = "folded away in calls with one key"


def report(network: Any, name: str) -> KernelReport:
    found = lowered_report(network, name)
    assert found is not None
    return found


@torch.no_grad()
def call(network: Any, tokens: int) -> Any:
    x_t, t, context = example_inputs(network, 2)
    network(x_t, t, context[:, :1].repeat(1, tokens, 1))
    return network


def layers_of_products(network: Any) -> set[str]:
    """Names of the layers whose weights a call of `network` multiplies."""
    calls: LoweredCalls = network._compiled_call_impl
    return {name for key in calls.constants._made for name in key[0]}


def test_layers_that_fold_away_are_told() -> None:
    network = call(lower_network_(fresh("text")), 1)
    layers = {name for name, layer in network.named_modules() if isinstance(layer, IntLayer)}
    weighted = {name for name in layers if not name.endswith((".qk", ".pv"))}
    folded = {name for name in layers if report(network, name).name == "folded"}
    assert folded & weighted == weighted - layers_of_products(network)
    assert folded - weighted == {name for name in layers if "attn2.processor" in name}
    assert "one key, its softmax is 1" in report(network, f"{CROSS}.to_q").reason
    counts = {row["kernel"]: row["layers"] for row in count_kernels(network)}
    assert counts == {"triton": len(layers_of_products(network)), "flash": 8, "folded": len(folded)}


def test_before_a_call_it_tells_what_may_fold() -> None:
    network = lower_network_(fresh("text"))
    for name in ("to_q", "to_k", "processor.qk", "processor.pv"):
        assert IF_ONE_KEY in report(network, f"{CROSS}.{name}").reason
        assert IF_ONE_KEY not in report(network, f"{SELF}.{name}").reason
    assert IF_ONE_KEY not in report(network, f"{CROSS}.to_v").reason
    names = [report(network, name).name for name in ("conv_in", f"{SELF}.processor.qk", f"{CROSS}.to_k")]
    assert names == ["triton", "flash", "triton"]
    assert lowered_report(integer_network("text"), "conv_in") is None


def test_calls_of_other_shapes_are_told_together() -> None:
    network = call(call(lower_network_(fresh("text")), 3), 1)
    assert report(network, f"{CROSS}.processor.qk").name == "flash or folded"
    assert report(network, f"{CROSS}.to_k").name == "triton or folded"
    assert "by the shapes of a call" in report(network, f"{CROSS}.to_k").reason
    assert report(network, f"{SELF}.processor.qk").name == "flash"


def test_attention_on_codes_never_folds() -> None:
    network = lower_network_(fresh("text"), ON_CODES)
    names = [f"{CROSS}.{name}" for name in ("to_q", "to_k", "processor.pv")]
    before = [report(network, name) for name in names]
    assert "int8 codes" in before[-1].reason
    assert [report(call(network, 1), name) for name in names] == before
    assert {kernel.name for kernel in before} == {"triton"}


@pytest.mark.parametrize(
    ("dtype", "keys", "name"),
    [(torch.bfloat16, 4096, "products and softmax"), (torch.bfloat16, 8, "torch"), (torch.float32, 4096, "torch")],
)
def test_wide_heads_are_told(dtype: torch.dtype, keys: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 16 channels, wide for kernels of up to 8."""
    monkeypatch.setattr(kernels, "MOST_CHANNELS", 8)
    monkeypatch.setattr(kernels, "MOST_KEYS", keys)
    monkeypatch.setattr("mezzotint.gpu.report.MOST_CHANNELS", 8)
    network = lower_network_(fresh("small"), LoweringConfig(dtype))
    qk = "mid_block.attentions.0.processor.qk"
    before = report(network, qk)
    assert ("calls with more than" in before.reason) == (dtype == torch.bfloat16)
    with torch.no_grad():
        network(*example_inputs(network, 2))
    assert report(network, qk).name == name
    assert report(network, qk).reason.startswith("heads wider than 8:")
    assert "calls with more than" not in report(network, qk).reason
