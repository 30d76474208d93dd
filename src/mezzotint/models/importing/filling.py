"""Put the entries of a checkpoint in place as weights of a network: all of them, none left over, each of its shape.

A checkpoint is a dictionary of entries, and a *part* of it is what one network owns: the entries below a prefix. A
network without any entry is *absent*; a network with some is filled, or the file is refused with what is wrong. Buffers
that only training reads are known by name and passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from mezzotint.errors import ModelError
from mezzotint.models.importing.keys import Source
from mezzotint.models.importing.reading import State

NAMED = 3  # entries that an error spells out

# Entries that belong to no network: noise schedules, loss networks, bookkeeping of EMA, positions of tokens.
_SCHEDULE = (
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 lvlb_weights logvar scale_factor cond_ids"
)
_TRAINING = re.compile(
    rf"({'|'.join(_SCHEDULE.split())})"
    r"|model_ema\.(decay|num_updates)|first_stage_model\.(loss|model_ema)\..+|(.+\.)?position_ids"
)


def is_training_buffer(key: str) -> bool:
    """Whether the entry `key` of a checkpoint is known to matter for training only."""
    return _TRAINING.fullmatch(key) is not None


@dataclass(frozen=True)
class Part:
    """A network and where its weights lie.

    Attributes:
        name: of the part in the pipeline, such as "unet".
        prefix: that its entries share; "" is the whole checkpoint.
        network: without weights, or with any.
        source: from a name of the network's state to where its weight lies, below the prefix.
        key_of: from the place below the prefix to the entry, where it is not prefix + place.
    """

    name: str
    prefix: str
    network: nn.Module
    source: Callable[[str], Source]
    key_of: Callable[[str], str] | None = None

    def wanted(self) -> dict[str, tuple[int, ...]]:
        """{entry: shape} of all that the network needs; the third parts of one entry count once."""
        shapes = {}
        for name, weight in self.network.state_dict().items():
            source = self.source(name)
            shapes[self.entry(source)] = source.shape_of(tuple(weight.shape))
        return shapes

    def entry(self, source: Source) -> str:
        """The full name of the entry at `source`."""
        return self.key_of(source.key) if self.key_of else self.prefix + source.key

    def present(self, state: State) -> dict[str, tuple[int, ...]]:
        """{entry: shape} of all that the checkpoint has below the prefix."""
        return {
            key: tuple(value.shape)
            for key, value in state.items()
            if key.startswith(self.prefix) and not is_training_buffer(key)
        }


def mismatches(wanted: dict[str, tuple[int, ...]], present: dict[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """{"missing" | "not expected" | "of another shape": entries, as an error shows them}. Empty lists are left out."""
    reshaped = [
        f"{key} (expected {list(shape)}, got {list(present[key])})"
        for key, shape in wanted.items()
        if key in present and not _same_shape(present[key], shape)
    ]
    found = {
        "missing": [key for key in wanted if key not in present],
        "not expected": [key for key in present if key not in wanted],
        "of another shape": reshaped,
    }
    return {what: keys for what, keys in found.items() if keys}


def fill_(part: Part, state: State) -> bool:
    """Gives the network of `part` its weights in float32; False, and nothing done, if the checkpoint has none for it.

    Raises:
        ModelError: some entries are missing, foreign or of another shape.
    """
    present = part.present(state)
    if not present:
        return False
    wrong = mismatches(part.wanted(), present)
    if wrong:
        raise ModelError(f"{part.name}: {describe(wrong)}; is this the YAML of this checkpoint?")
    weights = {}
    for name, weight in part.network.state_dict().items():
        source = part.source(name)
        value = source.take(state[part.entry(source)], tuple(weight.shape))
        weights[name] = value.to(torch.float32).contiguous()
    part.network.load_state_dict(weights, assign=True)
    return True


def describe(wrong: dict[str, list[str]]) -> str:
    """What `mismatches` found, on one line: counts and the first few of each kind."""
    return ", ".join(f"{count(keys)} {what}: {shorten(keys)}" for what, keys in wrong.items())


def count(keys: list[str]) -> str:
    """The number of `keys` as the beginning of a sentence."""
    return "1 entry is" if len(keys) == 1 else f"{len(keys)} entries are"


def shorten(keys: list[str]) -> str:
    """The first few of `keys`."""
    return ", ".join(keys[:NAMED]) + (", ..." if len(keys) > NAMED else "")


def _same_shape(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two weights differ at most in being a matrix or a kernel of size 1."""
    return prod(one) == prod(other) and _matrix(one) == _matrix(other)


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` without the ones at its end, the first two axes always kept."""
    kept = len(shape)
    while kept > 2 and shape[kept - 1] == 1:
        kept -= 1
    return shape[:kept]
