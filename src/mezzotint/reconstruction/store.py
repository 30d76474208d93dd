"""Memory of reconstruction: tensors with one row per calibration row, within a budget.

Rows live on the compute device while the budget lasts, beyond it in temporary files, which are read and written with
plain file access: mapped files would count as this process's memory. What waits for a later unit (`waiting`: outputs of
finished units, read once or twice from front to back) may take half of the budget, so that the rows of the unit at
hand, which are read at random in every iteration, find room. Rows may be stored in float16: half the room, 11 bits of
mantissa against the 8 of an activation's grid, saturating at 65,504.

The files go where Python's `tempfile` puts them (TMPDIR), and each is deleted when its rows are released.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor


class RowTensor:
    """[N, ...] rows on a device or in a file.

    Attributes:
        shape: with the number of rows in front.
        dtype: of what is written and read.
        nbytes: of all rows, as they are stored.
    """

    def __init__(self, store: RowStore, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._stored = store.dtype if dtype.is_floating_point else dtype
        self.nbytes = math.prod(shape) * self._stored.itemsize
        self.waiting = False
        self._store = store
        self._tensor: Tensor | None = None
        self._file: BinaryIO | None = None

    @property
    def on_device(self) -> bool:
        return self._tensor is not None

    def write(self, rows: slice, values: Tensor) -> None:
        """Puts `values` in the places `rows`."""
        values = values.detach()
        if self._stored == torch.float16:
            largest = torch.finfo(torch.float16).max
            values = values.clamp(-largest, largest)
        if self._tensor is not None:
            self._tensor[rows] = values.to(self._tensor)
        else:
            self._transfer(rows.start, values.to("cpu", self._stored).contiguous(), write=True)

    def read(self, rows: slice | Tensor) -> Tensor:
        """The rows on the compute device; perhaps a view of what is stored, so not to be written into."""
        if self._tensor is not None:
            picked = self._tensor[rows] if isinstance(rows, slice) else self._tensor[rows.to(self._tensor.device)]
            return picked.to(self.dtype)
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        values = torch.empty((count, *self.shape[1:]), dtype=self._stored)
        if isinstance(rows, slice):
            self._transfer(rows.start, values, write=False)
        else:
            for place, row in enumerate(rows.tolist()):
                self._transfer(row, values[place : place + 1], write=False)
        return values.to(self._store.device).to(self.dtype)

    def wait_(self) -> None:
        """Keeps the rows for later units: on the device only while their half of the budget lasts."""
        if self.waiting or not self.on_device:
            return
        if self._store.waiting + self.nbytes <= self._store.budget / 2:
            self.waiting = True
            self._store.waiting += self.nbytes
            return
        tensor = self._tensor
        self.release()
        self._to_file()
        assert tensor is not None
        self.write(slice(0, self.shape[0]), tensor)

    def release(self) -> None:
        """Gives the memory back; the rows are gone."""
        if self._tensor is not None:
            self._store.used -= self.nbytes
            self._store.waiting -= self.nbytes if self.waiting else 0
        if self._file is not None:
            self._store.spilled -= self.nbytes
            self._store.close_file(self._file)
        self._tensor, self._file, self.waiting = None, None, False

    def _to_device(self) -> None:
        self._tensor = torch.empty(self.shape, dtype=self._stored, device=self._store.device)
        self._store.used += self.nbytes

    def _to_file(self) -> None:
        self._file = self._store.open_file()
        self._store.spilled += self.nbytes

    def _transfer(self, first: int, values: Tensor, *, write: bool) -> None:
        """Copies `values` (contiguous, on the CPU) to or from the file, starting at row `first`."""
        if self._file is None:
            raise ValueError("these rows were released")
        self._file.seek(first * (self.nbytes // self.shape[0]))
        left = memoryview(values.flatten().view(torch.uint8).numpy().data)
        while left:
            done = self._file.write(left) if write else self._file.readinto(left)  # type: ignore[attr-defined]
            if not done:
                raise OSError(f"{self._file.name}: {len(left)} bytes short")
            left = left[done:]


class RowStore:
    """Allocates row tensors; use as a context so that files are removed.

    Args:
        budget_gb: bytes / 1e9 that rows may take on `device`.
        dtype: that floating-point rows are stored in, float32 or float16.

    Attributes:
        used: bytes of rows on the device.
        waiting: those of them that wait for a later unit.
        spilled: bytes of rows in files.
    """

    def __init__(self, budget_gb: float, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.budget = budget_gb * 1e9
        self.device, self.dtype = device, dtype
        self.used = 0
        self.waiting = 0
        self.spilled = 0
        self._open: list[BinaryIO] = []
        self._files = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open:
            file.close()
        if self._folder is not None:
            self._folder.cleanup()

    def allocate(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, *, waiting: bool = False) -> RowTensor:
        """Uninitialised rows of `shape`: on the device if they fit the budget (`waiting`: half of it), or in a file."""
        rows = RowTensor(self, shape, dtype)
        fits = self.used + rows.nbytes <= self.budget
        if fits and (not waiting or self.waiting + rows.nbytes <= self.budget / 2):
            rows._to_device()
            rows.waiting = waiting
            self.waiting += rows.nbytes if waiting else 0
        else:
            rows._to_file()
        return rows

    def open_file(self) -> BinaryIO:
        """A new file for rows."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mezzotint-rows-", ignore_cleanup_errors=True)
        self._files += 1
        self._open.append((Path(self._folder.name) / f"{self._files}.rows").open("w+b", buffering=0))
        return self._open[-1]

    def close_file(self, file: BinaryIO) -> None:
        """Deletes a file of `open_file`."""
        self._open.remove(file)
        file.close()
        Path(file.name).unlink(missing_ok=True)
