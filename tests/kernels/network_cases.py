"""Whole lowered networks in Triton's interpreter, each step by its kernel; collected by `test_triton.py`.

With float32 activations: the interpreter cuts bfloat16 off where a GPU rounds, and its products of bfloat16 are none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_cases import INTERPRETED  # patches the interpreter

sys.path.insert(0, str(Path(__file__).parents[1]))

from mezzotint.gpu.comparing import called, differences, name_of, on_cpu
from mezzotint.gpu.network import LoweringConfig
from mezzotint.kernels.triton import attention, int_attention, launch, launch_norms
from steps import fault, steps_of

KERNELS: dict[str, Any] = {
    **{name: getattr(launch, name) for name in ("int8_product", "int8_product_codes")},
    **{name: function for name, function in vars(launch_norms).items() if name.startswith("nhwc_")},
    "flash_attention_codes": attention._codes_on_gpu,
    "int_attention_codes": int_attention._codes_on_gpu,
}


def by_kernel(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return KERNELS.get(name_of(operator), lambda *given: called(operator, given, kwargs))(*args)


@pytest.mark.skipif(not INTERPRETED, reason="tests/gpu does so on a GPU, in every dtype, but for float edges")
@pytest.mark.parametrize(
    ("kind", "bits", "attention"),
    [
        ("small", "w8a8", "bf16"),
        ("edges", "w4a8", "int8"),
        ("pixels", "w4a8", "int8"),
        ("text", "w8a8", "int8"),
        ("text", "w4a8", "bf16"),
    ],
)
def test_every_step_of_a_network_is_exact_arithmetic(kind: str, bits: str, attention: str) -> None:
    steps = steps_of(kind, LoweringConfig(torch.float32, attention=attention), bits)
    found = list(differences(*steps, by=by_kernel, against=on_cpu))
    assert [told for told in map(fault, found) if told] == []
    assert {step.name for step in found} >= {"int8_product", "nhwc_group_norm_codes", "nhwc_entry_codes, shortcut"}
