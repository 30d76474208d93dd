"""Rows of conditions follow their samples; parts that do not fit are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.errors import ConfigError
from mezzotint.models.conditions import Conditions


def made(count: int = 6) -> Conditions:
    states = torch.arange(count * 6.0).view(count, 2, 3)
    uncond = {"encoder_hidden_states": torch.zeros(1, 2, 3).expand(count, 2, 3)}
    return Conditions({"encoder_hidden_states": states}, uncond, [f"prompt {row}" for row in range(count)])


@given(rows=st.lists(st.integers(0, 5), max_size=8))
def test_rows_are_chosen_in_the_order_asked(rows: list[int]) -> None:
    everything = made()
    for index in (rows, torch.tensor(rows, dtype=torch.int64)):
        some = everything.rows(index)
        assert len(some) == len(rows)
        assert some.labels == [f"prompt {row}" for row in rows]
        assert some.uncond is not None
        for row, number in enumerate(rows):
            assert torch.equal(
                some.cond["encoder_hidden_states"][row], everything.cond["encoder_hidden_states"][number]
            )
        assert some.uncond["encoder_hidden_states"].shape == (len(rows), 2, 3)


def test_slices_are_rows_too() -> None:
    everything = made()
    some = everything.rows(slice(4, 9))
    assert some.labels == ["prompt 4", "prompt 5"]
    assert torch.equal(some.cond["encoder_hidden_states"], everything.cond["encoder_hidden_states"][4:])
    assert everything.rows(slice(0, 0)).labels == []


def test_without_unconditional_rows_there_are_none_anywhere() -> None:
    plain = Conditions({"class_labels": torch.arange(3)}, None, ["a", "b", "c"])
    assert plain.rows([1]).uncond is None
    assert plain.to("cpu").uncond is None
    assert plain.to(torch.device("cpu")).labels == plain.labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cond": {}}, "no keyword argument of the network"),
        ({"uncond": {"other": torch.zeros(2, 1)}}, r"cond has \['x'\], uncond \['other'\]"),
        ({"labels": ["a"]}, r"cond\['x'\]: expected a row for each of 1 labels, got \(2, 1\)"),
        ({"uncond": {"x": torch.zeros(3, 1)}}, r"uncond\['x'\]: expected a row for each of 2 labels, got \(3, 1\)"),
        ({"cond": {"x": torch.tensor(0)}}, r"cond\['x'\]: expected a row for each of 2 labels, got \(\)"),
    ],
)
def test_parts_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {"cond": {"x": torch.zeros(2, 1)}, "uncond": None, "labels": ["a", "b"]}
    with pytest.raises(ConfigError, match=message):
        Conditions(**{**parts, **changes})
