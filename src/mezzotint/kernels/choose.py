"""Which kernel does a product, and why: a table in order of preference, read from the top.

`auto` takes the first kernel that does not refuse. What was passed over is part of the reason, which `inspect`
prints, so a slow path is never taken silently. A kernel asked for by name is taken or is an error.
"""

from __future__ import annotations

import torch

from mezzotint.errors import KernelError
from mezzotint.kernels import contract, exact_fp32, onednn, reference
from mezzotint.kernels.contract import (
    CODE_MAX,
    WEIGHT_MAX,
    Geometry,
    Kernel,
    KernelReport,
    Operation,
    Pair,
    Paired,
    PairProduct,
    Product,
    Request,
    Weighted,
)

AVAILABLE: dict[str, Kernel] = {"onednn": onednn, "exact-fp32": exact_fp32, "reference": reference}
AUTO = "auto"


def choose(
    op: Operation,
    device: torch.device | str,
    *,
    input_max: int = CODE_MAX,
    weight_max: int = WEIGHT_MAX,
    kernel_size: Pair = (1, 1),
    geometry: Geometry | None = None,
    kernel: str = AUTO,
) -> KernelReport:
    """The kernel for a product, and the reason in words.

    Args:
        input_max: largest activation code, 2**bits - 1.
        weight_max: largest size of a weight code, 2**(bits - 1); for `matmul` of the second input's codes.
        kernel_size: of a convolution.
        kernel: "auto", or a name in AVAILABLE to insist on.

    Raises:
        KernelError: an unknown name, a kernel that refuses, or (auto) nothing that can do it.
    """
    request = Request(op, torch.device(device), input_max, weight_max, kernel_size, geometry or Geometry())
    if kernel != AUTO:
        return _insist(kernel, request)
    passed_over: list[str] = []
    for name, candidate in AVAILABLE.items():
        refusal = candidate.refuses(request)
        if refusal is None:
            return KernelReport(name, "; ".join([candidate.SUMMARY, *passed_over]))
        passed_over.append(f"not {name}: {refusal}")
    raise KernelError(f"no kernel can do {op} on {request.device}: {'; '.join(passed_over)}")


def prepare_conv2d(name: str, constants: Weighted) -> Product:
    """The product of kernel `name`, with its inputs checked against the contract."""
    contract.check_weighted("conv2d", constants)
    product, shapes = AVAILABLE[name].prepare_conv2d(constants), constants.without_weights()

    def checked(x_q: torch.Tensor) -> torch.Tensor:
        contract.check_codes("conv2d", "x_q", x_q)
        contract.conv2d_shape(x_q.shape, shapes)
        return product(x_q)

    return checked


def prepare_linear(name: str, constants: Weighted) -> Product:
    """The product of kernel `name`, with its inputs checked against the contract."""
    contract.check_weighted("linear", constants)
    product, shapes = AVAILABLE[name].prepare_linear(constants), constants.without_weights()

    def checked(x_q: torch.Tensor) -> torch.Tensor:
        contract.check_codes("linear", "x_q", x_q)
        contract.linear_shape(x_q.shape, shapes)
        return product(x_q)

    return checked


def prepare_matmul(name: str, constants: Paired) -> PairProduct:
    """The product of kernel `name`, with its inputs checked against the contract."""
    contract.check_paired(constants)
    product = AVAILABLE[name].prepare_matmul(constants)

    def checked(a_q: torch.Tensor, b_q: torch.Tensor) -> torch.Tensor:
        contract.check_codes("matmul", "a_q", a_q)
        contract.check_codes("matmul", "b_q", b_q)
        contract.matmul_shape(a_q.shape, b_q.shape)
        return product(a_q, b_q)

    return checked


def _insist(kernel: str, request: Request) -> KernelReport:
    if kernel not in AVAILABLE:
        raise KernelError(f"unknown kernel {kernel!r}; there are {AUTO}, {', '.join(AVAILABLE)}")
    refusal = AVAILABLE[kernel].refuses(request)
    if refusal is not None:
        raise KernelError(f"kernel {kernel!r} cannot do this {request.op}: {refusal}; choose kernel={AUTO!r}")
    return KernelReport(kernel, f"{AVAILABLE[kernel].SUMMARY}; asked for by name")
