"""Memory of reconstruction: tensors with one row per calibration sample, within a budget.

Rows live on the compute device while the budget lasts, beyond it in memory-mapped temporary files. What is merely
convenient (`optional=True`: outputs of finished units, which could be computed again) may take half the budget and is
never spilled.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor


class RowTensor:
    """[N, ...] float32 rows on a device or in a file."""

    def __init__(self, tensor: Tensor, store: RowStore, on_device: bool) -> None:
        self.tensor = tensor
        self._store = store
        self.on_device = on_device
        self.nbytes = tensor.numel() * tensor.element_size()

    def write(self, rows: slice, values: Tensor) -> None:
        self.tensor[rows].copy_(values)

    def read(self, rows: slice | Tensor) -> Tensor:
        """The rows on the compute device."""
        picked = self.tensor[rows] if isinstance(rows, slice) else self.tensor[rows.to(self.tensor.device)]
        return picked.to(self._store.device)

    def release(self) -> None:
        """Gives the memory back to the budget; the rows are gone."""
        if self.on_device:
            self._store.used -= self.nbytes
        self.on_device = False
        self.tensor = torch.empty(0)


class RowStore:
    """Allocates row tensors; use as a context so that spilled files are removed.

    Args:
        budget_gb: bytes / 1e9 that rows may take on `device`.
    """

    def __init__(self, budget_gb: float, device: torch.device) -> None:
        self.budget = budget_gb * 1e9
        self.device = device
        self.used = 0
        self.spilled = 0
        self._files = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RowStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def allocate(self, shape: tuple[int, ...]) -> RowTensor:
        """Uninitialised rows of `shape`, on the device if they fit the budget, else in a file."""
        nbytes = 4 * math.prod(shape)
        if self.used + nbytes <= self.budget:
            return self._on_device(shape, nbytes)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mezzotint-rows-", ignore_cleanup_errors=True)
        path = Path(self._folder.name) / f"{self._files}.f32"
        self._files += 1
        self.spilled += nbytes
        tensor = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.float32)
        return RowTensor(tensor.view(shape), self, on_device=False)

    def allocate_optional(self, shape: tuple[int, ...]) -> RowTensor | None:
        """Rows on the device if they fit in half the budget, else None."""
        nbytes = 4 * math.prod(shape)
        return self._on_device(shape, nbytes) if self.used + nbytes <= self.budget / 2 else None

    def _on_device(self, shape: tuple[int, ...], nbytes: int) -> RowTensor:
        self.used += nbytes
        return RowTensor(torch.empty(shape, device=self.device), self, on_device=True)
