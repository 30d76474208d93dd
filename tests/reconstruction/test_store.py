"""Rows within a budget: on the device, in files beyond it, half of it for what waits; nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mezzotint.reconstruction.store import RowStore

CPU = torch.device("cpu")


@pytest.fixture
def store() -> Iterator[RowStore]:
    with RowStore(budget_gb=1e-6, device=CPU) as store:  # 1,000 bytes
        yield store


def test_rows_beyond_the_budget_go_to_a_file_and_read_back(store: RowStore) -> None:
    small, large = store.allocate((10, 5)), store.allocate((100, 50))
    assert (small.on_device, large.on_device) == (True, False)
    assert (store.used, store.spilled) == (200, 20_000)
    values = torch.randn(30, 50)
    large.write(slice(20, 50), values)
    assert torch.equal(large.read(slice(20, 50)), values)
    assert torch.equal(large.read(torch.tensor([21, 20])), values[[1, 0]])


def test_what_waits_takes_half_of_the_budget(store: RowStore) -> None:
    first, second = (store.allocate((10, 10), waiting=True) for _ in range(2))  # 400 bytes each
    assert (first.on_device, second.on_device) == (True, False)
    at_hand = store.allocate((10, 15))
    assert at_hand.on_device
    assert (store.used, store.waiting) == (1000, 400)


def test_rows_that_come_to_wait_move_to_a_file_when_their_half_is_full(store: RowStore) -> None:
    first, second = store.allocate((10, 10)), store.allocate((10, 10))
    values = torch.randn(10, 10)
    second.write(slice(0, 10), values)
    first.wait_()
    second.wait_()
    assert (first.on_device, second.on_device) == (True, False)
    assert torch.equal(second.read(slice(0, 10)), values)
    assert (store.used, store.waiting, store.spilled) == (400, 400, 400)


def test_released_rows_give_everything_back(store: RowStore) -> None:
    kept = [store.allocate((10, 10), waiting=True), store.allocate((10, 100))]
    folder = Path(kept[1]._file.name).parent  # type: ignore[union-attr]
    assert len(list(folder.iterdir())) == 1
    for rows in kept:
        rows.release()
    assert (store.used, store.waiting, store.spilled) == (0, 0, 0)
    assert not list(folder.iterdir())
    store.allocate((10, 100))
    store.__exit__(None, None, None)
    assert not folder.exists()


@pytest.mark.parametrize("budget_gb", [1e-9, 1.0])
def test_half_precision_takes_half_the_room_and_keeps_eleven_bits(budget_gb: float) -> None:
    with RowStore(budget_gb, CPU, torch.float16) as store:
        rows, whole = store.allocate((8, 50)), store.allocate((8, 3), torch.int64)
        values = torch.randn(8, 50)
        values[0, 0] = 1e6
        rows.write(slice(0, 8), values)
        whole.write(slice(0, 8), torch.arange(24).view(8, 3) + (1 << 40))
        read = rows.read(slice(0, 8))
        assert rows.nbytes == 800
        assert read.dtype == torch.float32
        assert read[0, 0] == 65504
        assert ((read - values).abs() <= values.abs() / 2**11 + 1e-7).flatten()[1:].all()
        assert torch.equal(whole.read(torch.tensor([7])), torch.arange(21, 24)[None] + (1 << 40))


def test_released_rows_cannot_be_read(store: RowStore) -> None:
    rows = store.allocate((2, 2))
    rows.release()
    with pytest.raises(ValueError, match="released"):
        rows.read(slice(0, 1))
