"""The choice of a kernel: what is taken, what is refused, and that the reason is said."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from mezzotint.errors import KernelError
from mezzotint.kernels import exact_fp32, onednn
from mezzotint.kernels.choose import AVAILABLE, choose
from mezzotint.kernels.contract import Geometry, Operation

VNNI = onednn.probe(255, 128) is None


def test_order_of_preference() -> None:
    assert list(AVAILABLE) == ["onednn", "exact-fp32", "reference"]


@pytest.mark.skipif(not VNNI, reason="no VNNI on this processor")
@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_onednn_is_taken_where_it_is_exact(op: Operation) -> None:
    assert choose(op, "cpu") == ("onednn", onednn.SUMMARY)


@pytest.mark.skipif(not VNNI, reason="no VNNI on this processor")
def test_matmul_takes_integers_and_says_why_not() -> None:
    assert choose("matmul", "cpu", weight_max=255).name == "onednn"
    assert "not onednn: it runs on the CPU" in choose("matmul", "cuda", weight_max=255).reason


@pytest.mark.parametrize(
    ("geometry", "kernel_size", "reason"),
    [
        (Geometry(conv_groups=2), (3, 3), "conv_groups=2"),
        (Geometry(stride=(1, 2)), (3, 3), r"stride=\(1, 2\)"),
        (Geometry(padding=(1, 1)), (1, 1), r"padding \(1, 1\) is more than 'same' padding \(0, 0\)"),
        (Geometry(padding=(0, 2)), (3, 3), r"padding \(0, 2\) is more than 'same' padding \(1, 1\)"),
        (Geometry(padding=(2, 3), dilation=(2, 2)), (3, 3), r"padding \(2, 3\)"),
    ],
)
def test_onednn_refuses_what_it_gets_wrong(geometry: Geometry, kernel_size: tuple[int, int], reason: str) -> None:
    with pytest.raises(KernelError, match=f"kernel 'onednn' cannot do this conv2d: .*{reason}"):
        choose("conv2d", "cpu", geometry=geometry, kernel_size=kernel_size, kernel="onednn")
    assert choose("conv2d", "cpu", geometry=geometry, kernel_size=kernel_size).name == "exact-fp32"


def test_cuda_takes_the_reference_and_says_why() -> None:
    report = choose("conv2d", "cuda")
    assert report.name == "reference"
    assert "not onednn: it runs on the CPU, not on cuda" in report.reason
    assert "TF32" in report.reason


def test_a_device_without_float64_is_an_error_that_lists_the_reasons() -> None:
    with pytest.raises(KernelError, match="no kernel can do linear on mps: not onednn: .* device mps has no float64"):
        choose("linear", "mps")


def test_a_window_too_big_for_float32_takes_the_reference() -> None:
    report = choose("conv2d", "cpu", kernel_size=(23, 23), geometry=Geometry(conv_groups=2))
    assert report.name == "reference"
    assert "single channel can exceed 2**24" in report.reason


def test_a_named_kernel_is_taken_or_is_an_error() -> None:
    assert choose("linear", "cpu", kernel="reference").name == "reference"
    with pytest.raises(KernelError, match="unknown kernel 'cutlass'; there are auto, onednn, exact-fp32, reference"):
        choose("linear", "cpu", kernel="cutlass")
    with pytest.raises(KernelError, match="cannot do this matmul"):
        choose("matmul", "cuda", kernel="onednn")


def test_float_convolutions_that_are_transformed_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution that is off by less than half a unit, as Winograd's is."""
    direct = torch.nn.functional.conv2d

    def winograd(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y = direct(x, *args, **kwargs)
        return y + 0.25 if x.dtype == torch.float32 else y

    monkeypatch.setattr(torch.nn.functional, "conv2d", winograd)
    exact_fp32._convolution_is_exact.cache_clear()
    try:
        assert choose("conv2d", "cpu", kernel_size=(3, 3), geometry=Geometry(conv_groups=3)).name == "reference"
    finally:
        exact_fp32._convolution_is_exact.cache_clear()


PROGRAM = """
import torch
from mezzotint.grid.spec import activation_spec, weight_spec
from mezzotint.kernels import onednn
from mezzotint.layers.integer import IntConv2d, IntLinear
from mezzotint.layers.spec import LayerSpec

def check(bits, kernel):
    g = torch.Generator().manual_seed(0)
    half = 2 ** (bits - 1)
    x = torch.randn(2, 70, 9, 7, generator=g)
    scale, zero_point = torch.tensor([0.02]), torch.tensor([128], dtype=torch.int32)
    for kind, shape in (("conv2d", (19, 70, 3, 3)), ("linear", (19, 7))):
        spec = LayerSpec(kind=kind, weight=weight_spec(bits), input=activation_spec(8))
        codes = torch.randint(-half, half, shape, generator=g).to(torch.int8)
        make, more = (IntConv2d, {"padding": 1}) if kind == "conv2d" else (IntLinear, {})
        parts = (codes, torch.rand(1, 19, generator=g), torch.randn(19, generator=g), scale, zero_point)
        auto = make.from_parts(spec, *parts, **more)
        assert auto.kernel_report().name == kernel, auto.kernel_report()
        assert torch.equal(auto(x), make.from_parts(spec, *parts, **more, kernel="reference")(x)), (kind, bits)

reason = onednn.probe(255, 128)
assert reason is not None and "int16 saturation, no VNNI" in reason, reason
check(8, "exact-fp32")
check(7, "onednn")
check(4, "onednn")
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_without_vnni_saturation_is_noticed_and_results_stay_exact(isa: str) -> None:
    """Eight bits go through float32; seven and fewer cannot saturate and keep the int8 path."""
    if isa == "AVX512_CORE" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("no AVX-512 on this processor")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
