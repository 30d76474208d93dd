"""Layers whose input has a grid for every time of the sampler, and how they know the time.

The layers of the time embedding see the time and nothing else (`models.time_block`), so over a sampler of T steps each
has T inputs, of different ranges. TFMQ-DM (Huang et al. 2024, arXiv 2311.16503, section 4.3, finite set calibration)
gives each of the T a grid of its own. Here that is a table, and the row to take *comes with the data*, as one more
column of the input:

    time_proj   t [B]           ->  [sinusoids, tag]  [B, K + 1]      tag = TAG + row                         (1)
    layer       [x, tag]        ->  x quantized with the grid of its row, times the weight [B, O]
                                    and the tag again where the next reader is a time layer too [B, O + 1]

A SiLU lies between the layers; it leaves numbers from TAG upwards as they are (sigmoid(32) is 1 in float32). So each
row of a batch has its own time, a unit can run on kept inputs, and nothing outside of the data says what the time is:
no clock in the network, no hook, nothing that a tracer or a CUDA graph could miss. The tag is exact in float32 and
float16 for all tables, in bfloat16 for 224 times; beyond that neighbouring steps share a grid.

Rejected: a buffer that the first module sets and the others read. It works for a whole network and breaks for a part.

A time that is not in the table takes the row of the nearest one, so that an artifact can be sampled with other steps.

    name        dtype    shape  meaning
    times       int32    [T]    times of the sampler that calibrated
    scale       float32  [T]    grid step at each of them
    zero_point  int32    [T]
    rows        int64    [B]    which row of the tables each row of the batch takes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mezzotint.grid.spec import GridSpec
from mezzotint.layers.simulated import SimulatedLayer
from mezzotint.layers.spec import LayerSpec

TAG = 32
TIME_PROJ, TIME_EMBEDDING = "time_proj", "time_embedding"  # what the networks of diffusers call them


def hands_time_on(name: str) -> bool:
    """Whether the output of the time layer called `name` is the input of another one."""
    return name.startswith(f"{TIME_EMBEDDING}.")


class TaggedTimes(nn.Module):
    """Stands in for a network's `time_proj`: equation (1).

    Buffers:
        times: int32 [T].
    """

    times: Tensor

    def __init__(self, time_proj: nn.Module, count: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.time_proj = time_proj
        self.register_buffer("times", torch.zeros(count, dtype=torch.int32, device=device))

    def fill_(self, times: Sequence[int]) -> TaggedTimes:
        """Sets the times."""
        self.times.copy_(torch.tensor(times, dtype=torch.int32))
        return self

    def forward(self, t: Int[Tensor, " b"]) -> Float[Tensor, "b k"]:
        rows = (t[:, None] - self.times).abs().argmin(dim=1)
        features = self.time_proj(t)
        return torch.cat([features, (rows + TAG).to(features.dtype)[:, None]], dim=1)


def split_tag(x: Float[Tensor, "b k"]) -> tuple[Float[Tensor, "b k1"], Int[Tensor, " b"]]:
    """(what the layer multiplies, rows of its tables)."""
    return x[:, :-1], x[:, -1].to(torch.int64) - TAG


def codes_by_row(
    x: Float[Tensor, "b k"], scale: Float[Tensor, " b"], zero_point: Int[Tensor, " b"], spec: GridSpec
) -> Float[Tensor, "b k"]:
    """Codes of every row on its own grid, as floats: what `grid.affine.quantize` gives row by row."""
    codes = torch.round(x / scale[:, None]) + zero_point[:, None]
    return codes.clamp(spec.quant_min, spec.quant_max)


class TimedQuantizer(nn.Module):
    """Rounds every row to the grid of its time.

    Buffers:
        scale: float32 [T].
        zero_point: int32 [T].

    Attributes:
        enabled: as of `ActivationQuantizer`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: GridSpec, times: int) -> None:
        super().__init__()
        self.spec = spec
        self.enabled = True
        self.register_buffer("scale", torch.ones(times))
        self.register_buffer("zero_point", torch.zeros(times, dtype=torch.int32))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        if not self.enabled:
            return x
        scale, zero_point = self.scale[rows], self.zero_point[rows]
        return (codes_by_row(x, scale, zero_point, self.spec) - zero_point[:, None]) * scale[:, None]

    def extra_repr(self) -> str:
        return f"bits={self.spec.bits}, times={len(self.scale)}"


class FakeQuantTimedLinear(SimulatedLayer):
    """Simulated nn.Linear of a time layer; x [B, K + 1] -> [B, O], or [B, O + 1] where it hands the time on.

    Attributes:
        hands_on: whether the next reader of the output is a time layer.
    """

    def __init__(self, linear: nn.Linear, spec: LayerSpec, *, hands_on: bool) -> None:
        if spec.input is None:
            raise ValueError("a layer with a grid for every time needs an input grid")
        super().__init__(linear.weight, linear.bias, spec)
        self.input_quantizer = None  # that of the base class has one grid
        self.timed_quantizer = TimedQuantizer(spec.input, spec.times)
        self.hands_on = hands_on

    def forward(self, x: Float[Tensor, "b k"]) -> Float[Tensor, "b o"]:
        values, rows = split_tag(x)
        y = F.linear(self.timed_quantizer(values, rows), self.effective_weight(), self.bias)
        return torch.cat([y, x[:, -1:]], dim=1) if self.hands_on else y
