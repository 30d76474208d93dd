"""The time embedding between bfloat16 activations."""

from __future__ import annotations

import pytest
import torch

from mezzotint.gpu.comparing import differences, on_cpu
from mezzotint.gpu.network import LoweringConfig
from steps import steps_of

pytestmark = pytest.mark.usefixtures("traceable")

BFLOAT16, FLOAT32 = LoweringConfig(), LoweringConfig(torch.float32)


@pytest.mark.parametrize("kind", ["pixels", "text"])
def test_the_time_embedding_is_not_rounded_to_two_bytes(kind: str) -> None:
    """What every norm adds to its picture is that of float32 activations, bit for bit."""
    added = []
    for config in (FLOAT32, BFLOAT16):
        found = differences(*steps_of(kind, config), against=on_cpu)
        added.append([step.args[2] for step in found if step.name == "nhwc_group_norm_codes"])
    wide, narrow = ([vector for vector in vectors if vector is not None] for vectors in added)
    assert len(wide) == len(narrow) == 8
    assert all(torch.equal(one, other) for one, other in zip(wide, narrow, strict=True))


def test_a_time_embedding_of_float_layers_is_in_their_dtype() -> None:
    module, inputs = steps_of("pixels", BFLOAT16, "w4a32")
    with torch.no_grad():
        assert torch.isfinite(module(*inputs)[0]).all()
    linears = [step for step in differences(module, inputs, against=on_cpu) if step.name == "linear"]
    assert len(linears) > 2
    assert {argument.dtype for step in linears for argument in step.args} == {torch.bfloat16}
