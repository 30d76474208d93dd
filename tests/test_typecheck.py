"""The checker that all other tests lean on: what does not fit an annotation raises, at every call, in closures too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.grid import affine
from typecheck import checked, switched_off


@checked
def halves(
    x: Float[Tensor, "rows c"], count: int = 2, *more: int, wide: bool = False, **others: str
) -> Int[Tensor, " rows"]:
    return torch.full((len(x) // count,), 1 if wide else 0)


@checked
def scaled(x: Tensor, by: float) -> Tensor | None:
    return None if by == 0 else x


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: halves(torch.zeros(4)), r"halves: x: expected .*rows c.*float32 of shape \(4,\)"),
        (lambda: halves(torch.zeros(4, 2, dtype=torch.int8), 1), "x: expected .*int8 of shape"),
        (lambda: halves(torch.zeros(4, 2)), r"return: expected .*rows.* of shape \(2,\)"),
        (lambda: halves(torch.zeros(4, 2), 1.0), "count: expected .*int.*float 1.0"),
        (lambda: halves(x=torch.zeros(4, 2), count="1"), "count: expected"),
        (lambda: halves(torch.zeros(4, 2), 1, 2, None), r"\*more: expected .*NoneType"),
        (lambda: halves(torch.zeros(4, 2), 1, wide=3), "wide: expected"),
        (lambda: halves(torch.zeros(4, 2), 1, shade=3), r"\*\*others: expected"),
        (lambda: scaled(torch.zeros(1), "2"), "by: expected"),
    ],
)
def test_what_does_not_fit_raises(call: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        call()


def test_what_fits_passes() -> None:
    for rows in (1, 5):  # a dimension is one number within a call, not from call to call
        assert halves(torch.zeros(rows, 3), 1, 7, wide=True, shade="dark").tolist() == [1] * rows
    assert scaled(torch.zeros(1), 2) is not None
    assert scaled(torch.zeros(1), by=0.0) is None


def test_every_closure_runs_its_own_code_and_is_checked() -> None:
    def adder(offset: Any) -> Callable[[Any], Any]:
        @checked
        def add(x: int) -> int:
            return x + offset

        return add

    one, half = adder(1), adder(0.5)
    assert (one(1), adder(2)(1)) == (2, 3)
    with pytest.raises(TypeError, match="return: expected"):
        half(1)
    with pytest.raises(TypeError, match="x: expected"):
        adder(3)("1")


def test_methods_dataclasses_and_generators() -> None:
    @checked
    @dataclass
    class Point:
        x: int
        y: int = 0

        @classmethod
        @checked
        def of(cls, x: int) -> Self:
            return cls(x)

        @property
        @checked
        def upwards(self) -> Iterator[int]:
            yield from range(self.x)

    assert (Point.of(3).y, list(Point(2).upwards)) == (0, [0, 1])
    with pytest.raises(TypeError, match="x: expected"):
        Point("1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x: expected"):
        Point.of("1")  # type: ignore[arg-type]


def test_it_can_be_switched_off_and_on() -> None:
    with switched_off():
        assert scaled(torch.zeros(1), "2") is not None  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        scaled(torch.zeros(1), "2")  # type: ignore[arg-type]


def test_the_package_is_checked() -> None:
    with pytest.raises(TypeError, match=r"mezzotint.grid.affine.expand: .*: expected"):
        affine.expand("scale", 3, 0)  # type: ignore[arg-type]
