"""Lowered networks step by step: a right one has no fault, a wrong one says where; on a GPU, kernels against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mezzotint.gpu.comparing import Difference, Step, called, compare_steps, differences, name_of, on_cpu
from mezzotint.gpu.network import LoweringConfig
from steps import fault, steps_of

pytestmark = pytest.mark.usefixtures("traceable")

FLOAT32 = LoweringConfig(torch.float32)
ON_CODES = LoweringConfig(torch.float32, attention="int8")


def changing(name: str, change: Any) -> Step:
    """Steps as they are, but those called `name` with their arguments or results changed."""

    def by(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return change(operator, list(args)) if name_of(operator) == name else called(operator, args, kwargs)

    return by


def with_argument(index: int, change: Any) -> Any:
    """Calls an operator with one argument that is not its own."""
    return lambda operator, args: operator(*args[:index], change(args[index]), *args[index + 1 :])


def no_residual(operator: Any, args: list[Any]) -> Any:
    return operator(*args[:5], None, *args[6:])


def last_bit(operator: Any, args: list[Any]) -> Any:
    y = operator(*args)
    y.view(-1)[7] = torch.nextafter(y.view(-1)[7], torch.tensor(torch.inf))
    return y


FAULTS = [
    ("int8_product", last_bit, "int8_product"),
    ("int8_product", no_residual, "int8_product"),
    ("int8_product_codes", with_argument(13, lambda scale: scale * 1.0001), "int8_product_codes"),  # also of GEGLU
    ("nhwc_codes", with_argument(2, lambda scale: scale * 1.0001), "nhwc_codes"),
    ("nhwc_group_norm_codes", with_argument(8, lambda eps: 30 * eps), "nhwc_group_norm_codes"),
    ("nhwc_layer_norm_codes", with_argument(3, lambda eps: 30 * eps), "nhwc_layer_norm_codes"),
    ("nhwc_entry_codes", with_argument(9, lambda silu: not silu), "nhwc_entry_codes"),
    ("nhwc_entry_codes", with_argument(13, lambda scales: scales[::-1]), "nhwc_entry_codes, shortcut"),
    ("nhwc_upsampled_codes", with_argument(3, lambda zero: zero - 1), "nhwc_upsampled_codes"),
    ("flash_attention_codes", with_argument(4, lambda scale: scale * 1.01), "flash_attention_codes"),
    ("int_attention_codes", with_argument(4, lambda scale: scale * 1.02), "int_attention_codes"),
    ("silu", with_argument(0, lambda x: x * (1 + 1e-6)), "silu"),
    ("cos", with_argument(0, lambda x: x + 1e-6), "cos"),
]


@pytest.mark.parametrize(("name", "change", "told"), FAULTS)
def test_a_fault_is_told_by_the_step_it_is_in(name: str, change: Any, told: str) -> None:
    config = ON_CODES if name == "int_attention_codes" else FLOAT32
    found = list(differences(*steps_of("text", config), by=changing(name, change), against=on_cpu))
    wrong = [step for step in found if fault(step)]
    assert {step.name for step in wrong} == {told}
    assert fault(wrong[0]).startswith(f"{told} {'+'.join(wrong[0].layers)}: {wrong[0].off} of ")


@pytest.mark.parametrize("config", [FLOAT32, ON_CODES, LoweringConfig()], ids=["float32", "on codes", "bfloat16"])
@pytest.mark.parametrize("kind", ["pixels", "text"])
def test_steps_that_are_right_have_no_fault(kind: str, config: LoweringConfig) -> None:
    """Of exact arithmetic on both sides; and codes that tip because they lie in the middle are none."""
    module, inputs = steps_of(kind, config)
    tipping = changing("nhwc_group_norm_codes", with_argument(0, lambda x: x + 3e-7 * x.abs().max() * torch.sign(x)))
    for by in (called, tipping):
        found = list(differences(module, inputs, by=by, against=on_cpu))
        assert [told for told in map(fault, found) if told] == []
        assert_complete(module, found)
    table = compare_steps(module, inputs)
    assert sum(int(row["steps"]) for row in table.values()) == sum("mezzotint" in name for name in names_of(module)) + 5
    assert not any(row.get(measure) for row in table.values() for measure in ("codes off", "farthest", "error"))


def names_of(module: Any) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def assert_complete(module: Any, found: list[Difference]) -> None:
    """Every step is there, the entries of the five blocks with a shortcut twice, products with their layers."""
    assert len(found) == len(names_of(module)) + 5
    assert all(bool(step.layers) == step.name.startswith("int8_product") for step in found)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["pixels", "text"])
@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
@pytest.mark.parametrize("attention", ["bf16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_step_of_the_kernels_is_exact_arithmetic(
    kind: str, bits: str, attention: str, dtype: torch.dtype
) -> None:
    module, inputs = steps_of(kind, LoweringConfig(dtype, attention=attention), bits, "cuda")
    found = list(differences(module, inputs, against=on_cpu))
    assert_complete(module, found)
    assert [told for told in map(fault, found) if told] == []
