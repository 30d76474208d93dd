"""What a conditional network is told beside x_t and t: one row for each sample.

`Cond` is the bare form, keyword arguments of the network with one row for each row of x_t. `Conditions` is what a run
carries: the rows of every sample, those of the unconditional half of classifier-free guidance, and what each row
stands for, in words. Every method takes rows in the order of the samples, so a sample keeps its condition whatever
batch it is drawn in.

    name     dtype    shape        meaning
    cond     any      [N, ...]     keyword arguments of the network: encoder_hidden_states, class_labels
    uncond   any      [N, ...]     the same for the empty prompt or the unconditional label; None: no guidance
    labels   str      [N]          the prompt, or the class
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.errors import ConfigError

Cond = Mapping[str, Tensor]


@dataclass(frozen=True)
class Conditions:
    """Conditions of N samples; see the module's docstring. ConfigError if the parts differ in their number of rows."""

    cond: dict[str, Tensor]
    uncond: dict[str, Tensor] | None
    labels: list[str]

    def __post_init__(self) -> None:
        if not self.cond:
            raise ConfigError("conditions: no keyword argument of the network; give None for an unconditional network")
        if self.uncond is not None and self.uncond.keys() != self.cond.keys():
            raise ConfigError(
                f"conditions: cond has {sorted(self.cond)}, uncond {sorted(self.uncond)}; give both alike"
            )
        for part, rows in (("cond", self.cond), ("uncond", self.uncond or {})):
            for name, values in rows.items():
                if values.ndim == 0 or len(values) != len(self.labels):
                    raise ConfigError(
                        f"conditions: {part}[{name!r}]: expected a row for each of {len(self.labels)} labels, "
                        f"got {tuple(values.shape)}"
                    )

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: slice | Tensor | Sequence[int]) -> Conditions:
        """The conditions of some samples, in the order of `index`."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, dtype=torch.int64)
        numbers = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        return Conditions(
            {name: values[index] for name, values in self.cond.items()},
            None if self.uncond is None else {name: values[index] for name, values in self.uncond.items()},
            [self.labels[number] for number in numbers],
        )

    def to(self, device: str | torch.device) -> Conditions:
        """The same on `device`."""
        return Conditions(
            {name: values.to(device) for name, values in self.cond.items()},
            None if self.uncond is None else {name: values.to(device) for name, values in self.uncond.items()},
            self.labels,
        )
