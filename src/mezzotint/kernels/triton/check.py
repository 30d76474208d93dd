"""Whether a configuration computes a product: compared before the tuner may choose it.

On the first and the last rows of a product (of a picture's windows: the first and the last picture) with exact
arithmetic, in all of the result with the configuration that was compared before. Rows are few: the exact product of a
shape costs less than timing one configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mezzotint.kernels.triton import exact
from mezzotint.kernels.triton.tuning import Config

if TYPE_CHECKING:
    from mezzotint.kernels.triton.launch import Product

ROWS = 64  # at each end
POISON = 77  # what a result holds before: what is not written shows
CODES_OFF = 1e-3  # share of codes that may be off by one: GEGLU's error function is not the library's


class Check:
    """What configurations write into the result of `call`; `run` launches one."""

    def __init__(self, call: Product, run: Callable[[Product, Config], None]) -> None:
        self._call, self._run = call, run
        self._whole: Tensor | None = None  # of the first configuration that was right

    def __call__(self, config: Config) -> str | None:
        """Runs `config`; what is wrong with its result, or None.

        Raises:
            OutOfResources: of Triton, it does not fit.
        """
        out = self._call.out
        out.fill_(POISON)
        self._run(self._call, config)
        if self._whole is not None:
            share = _differing(out, self._whole)
            return f"{share:.2%} of its result are not those of another" if share else None
        got, expected = exact_part(self._call)
        share, allowed = _differing(got, expected), 0.0
        if out.dtype == torch.int8 and (got.int() - expected.int()).abs().max() <= 1:
            allowed = max(CODES_OFF, 1 / got.numel())
        if share > allowed:
            return f"{share:.2%} of its result are not those of exact arithmetic"
        self._whole = out.clone()
        return None


def exact_part(call: Product) -> tuple[Tensor, Tensor]:
    """(what `call.out` holds, what it should hold) in its first and last rows or pictures."""
    p = call.problem
    window = p.kernel > 1 or p.stride > 1

    def ends(t: Tensor) -> Tensor:
        return _ends(t, 1) if window else _ends(t.reshape(-1, t.shape[-1]), ROWS)

    residual = None if call.residual is None else ends(call.residual)
    arguments: list[Any] = [
        ends(call.x_q), call.weight, call.multiplier, call.correction, call.bias, residual, p.channels, p.bits,
        [p.kernel] * 2, [p.stride] * 2, list(p.padding), list(p.groups),
    ]  # fmt: skip
    if p.kind == "float":
        expected = exact.int8_product(*[*arguments, call.out.dtype])
    else:
        expected = exact.int8_product_codes(*[*arguments, p.kind == "geglu", *call.grid])
    return ends(call.out), expected


def _ends(rows: Tensor, size: int) -> Tensor:
    return rows if len(rows) <= 2 * size else torch.cat([rows[:size], rows[-size:]])


def _differing(got: Tensor, expected: Tensor) -> float:
    """Share of elements that differ; two that are no numbers do not."""
    return float(((got != expected) & ~((got != got) & (expected != expected))).float().mean())
