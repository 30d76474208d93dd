"""How far a step of a lowered network may lie from exact arithmetic on the same inputs, and why no farther.

Bounds are for kernels with float32 inside. Codes are held by `Difference.beyond`: how far one lies outside the half
step around its value. That is the error of the value in steps of its grid, so it stays small where a code tips.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from integer_networks import fresh
from mezzotint.gpu.comparing import Difference
from mezzotint.gpu.network import LoweringConfig, lower_network_
from mezzotint.models.denoiser import example_inputs

# Values of a norm or GEGLU reach 255 steps, each with some 16 roundings of 2**-24 behind it; erfc adds 1.5e-7.
CODES = 2.0**-11
ROUNDED = ("nhwc_group_norm_codes", "nhwc_entry_codes", "nhwc_layer_norm_codes")
# Torch's own, on two devices: the last bit of the largest value, twice.
ELEMENTWISE = ("silu", "sin", "cos", "mul")
# Probabilities and the mixed values are each rounded to the dtype of v: half of eps and half of eps of the largest |v|.
# float32 products may be of three parts of 11 bits (2**-21 of scores that reach 2**6).
ATTENTION = {torch.float32: 2.0**-15, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
PROBABILITY_CODES = 2  # of a query that may tip in attention on codes


@functools.cache
def steps_of(kind: str, config: LoweringConfig, bits: str = "w8a8", device: str = "cpu") -> tuple[Any, list[Any]]:
    """The graph of one of `integer_networks`, lowered for two pictures, and inputs, for tests that go step by step."""
    network = lower_network_(fresh(kind, bits).to(device), config)
    with torch.no_grad():
        network(*(value.to(device) for value in example_inputs(network, 2)))
    [lowered] = network._compiled_call_impl.lowered.values()
    return lowered.module, list(lowered.inputs.values())


def allowed(step: Difference) -> tuple[float, float]:
    """(largest relative difference of floats, largest `beyond` of codes) of a step; (0, 0): it must be equal."""
    geglu = step.name == "int8_product_codes" and step.args[12]
    if step.name in ROUNDED or geglu:
        return 0.0, CODES
    if step.name in ELEMENTWISE and step.args[0].is_floating_point():
        return 2 * torch.finfo(step.args[0].dtype).eps, 0.0
    if step.name == "nhwc_group_norm":  # in floats: sums in another order, one rounding to the dtype
        return 4 * torch.finfo(step.args[0].dtype).eps, 0.0
    if step.name == "flash_attention_codes":
        v, grid = step.args[2], step.args[5]
        return 0.0, ATTENTION[v.dtype] * float(v.abs().max()) / grid + CODES
    if step.name == "int_attention_codes":
        (*_, p, v), zero_point, largest, grid = step.args[5], step.args[6][3], step.args[7][3], step.args[8]
        return 0.0, PROBABILITY_CODES * p * v * max(zero_point, largest - zero_point) / grid + CODES
    return 0.0, 0.0


def fault(step: Difference) -> str | None:
    """What is wrong with a step, or None."""
    farthest, beyond = allowed(step)
    right = step.beyond <= beyond if beyond else step.off == 0 or step.farthest <= farthest
    layers = "+".join(step.layers)
    told = f"{step.off} of {step.count} differ, by up to {step.farthest:.3g}, {step.beyond:.3g} beyond half a step"
    return None if right else f"{step.name} {layers}: {told}; allowed {max(farthest, beyond):.3g}"
