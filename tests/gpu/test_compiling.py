"""What is compiled and tuned before a lowered network runs is told as phases; Triton's compiler is stood in for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("triton", reason="the extra 'gpu' is not installed")
from triton.runtime._async_compile import active_mode

import mezzotint.gpu.compiling as compiling
from mezzotint.errors import KernelError
from mezzotint.gpu.compiling import compile_kernels, prepare_kernels
from phases import Told


def ask(*names: str) -> None:
    """Asks for kernels as a launch does while they are compiled side by side; one called "wrong" does not compile."""
    mode = active_mode.get()
    assert mode is not None
    for name in names:
        mode.submit(name, lambda name=name: 1 / 0 if name == "wrong" else name, lambda kernel: None)


def test_every_kernel_that_is_asked_for_counts_once_right_or_wrong() -> None:
    told = Told()
    assert compile_kernels(lambda: ask("norm", "product", "norm", "wrong"), threads=2, progress=told) == frozenset()
    assert told.words == [("compile kernels", 3), 1, 1, 1, "end"]


def test_progress_is_told_by_the_thread_that_waits() -> None:
    threads = set()

    class Watching(Told):
        def advance(self, n: int = 1, **info: float | str) -> None:
            threads.add(threading.get_ident())

    compile_kernels(lambda: ask("norm", "product"), threads=2, progress=Watching())
    assert threads == {threading.get_ident()}


def test_nothing_to_do_is_nothing_to_tell() -> None:
    told = Told()
    prepare_kernels(lambda: None, told)
    assert not told.words


class Unknown:
    """Stands in for `kernels.triton.choice`: these products are tuned where they are launched first."""

    def __init__(self, products: list[str]) -> None:
        self.left = products
        self.compiles: set[str] | None = None
        self.tell: Callable[[], object] = lambda: None

    @contextmanager
    def only_compiling(self) -> Iterator[set[str]]:
        self.compiles = set()
        yield self.compiles
        self.compiles = None

    @contextmanager
    def telling_of_tuning(self, tell: Callable[[], object]) -> Iterator[None]:
        self.tell = tell
        yield

    def launch(self) -> None:
        for product in list(self.left):
            if self.compiles is not None:
                self.compiles.add(product)
                ask(product)
            elif product == "wrong":
                raise KernelError("no configuration computes it")
            else:
                self.left.remove(product)
                self.tell()


def stand_in(monkeypatch: pytest.MonkeyPatch, *products: str) -> Unknown:
    choice = Unknown(list(products))
    for name in ("only_compiling", "telling_of_tuning"):
        monkeypatch.setattr(compiling, name, getattr(choice, name))
    return choice


def test_unknown_products_are_tuned_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, told = stand_in(monkeypatch, "64x64", "96x64"), Told()
    prepare_kernels(choice.launch, told)
    expected: list[Any] = [("compile kernels", 2), 1, 1, "end", ("tune products", 2), 1, 1, "end"]
    assert told.words == expected
    prepare_kernels(choice.launch, told)
    assert told.words == expected


def test_a_product_that_nothing_computes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, told = stand_in(monkeypatch, "64x64", "wrong"), Told()
    with pytest.raises(KernelError, match="no configuration computes it"):
        prepare_kernels(choice.launch, told)
    assert told.words[-2:] == [("tune products", 2), 1]
