"""Calibration rows: with guidance two a trajectory, their conditions, and where those come from."""

from __future__ import annotations

import pytest
import torch

from families import CONDITIONAL, FAMILIES
from mezzotint.calibration.rows import CalibrationSet, calibration_conditions
from mezzotint.config import QuantizeConfig
from mezzotint.errors import ConfigError
from mezzotint.models.conditioning import condition_inputs, conditioning_kind
from mezzotint.models.conditions import Conditions

CPU = torch.device("cpu")
N = 3


def conditions(guided: bool = True) -> Conditions:
    told = {"states": torch.arange(N)[:, None] + torch.zeros(N, 2)}
    return Conditions(told, {"states": torch.full((N, 2), -1.0)} if guided else None, ["a", "b", "c"])


def rows(told: Conditions | None, guidance_scale: float) -> CalibrationSet:
    x_t = torch.arange(N)[:, None, None, None] + torch.zeros(N, 1, 2, 2)
    return CalibrationSet.of_trajectories(x_t, torch.tensor([7, 8, 9]), told, guidance_scale)


def test_with_guidance_a_trajectory_gives_an_unconditional_and_a_conditional_row() -> None:
    made = rows(conditions(), 3.0)
    assert made.x_t[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert made.t.tolist() == [7, 7, 8, 8, 9, 9]
    assert made.cond["states"][:, 0].tolist() == [-1, 0, -1, 1, -1, 2]


@pytest.mark.parametrize(("told", "scale"), [(conditions(), 1.0), (conditions(guided=False), 3.0)])
def test_without_guidance_there_is_one_row_with_its_condition(told: Conditions, scale: float) -> None:
    made = rows(told, scale)
    assert made.t.tolist() == [7, 8, 9]
    assert made.cond["states"][:, 0].tolist() == [0, 1, 2]


def test_unconditional_rows_have_no_conditions() -> None:
    made = rows(None, 7.5)
    assert made.t.tolist() == [7, 8, 9]
    assert made.cond == {}


def test_batches_hold_every_row_once_with_its_condition() -> None:
    made = rows(conditions(), 3.0)
    parts = list(made.batches(4, CPU))
    assert [part[0] for part in parts] == [slice(0, 4), slice(4, 6)]
    assert torch.equal(torch.cat([x_t for _, x_t, _, _ in parts]), made.x_t)
    assert torch.equal(torch.cat([t for _, _, t, _ in parts]), made.t)
    assert torch.equal(torch.cat([cond["states"] for *_, cond in parts]), made.cond["states"])


def test_rows_survive_a_checkpoint() -> None:
    made = rows(conditions(), 3.0)
    again = CalibrationSet.from_state(made.state())
    assert again.state().keys() == made.state().keys() == {"x_t", "t", "cond.states"}
    assert all(torch.equal(again.state()[name], values) for name, values in made.state().items())


@pytest.mark.parametrize("family", list(FAMILIES))
def test_calibration_takes_its_own_half_of_the_built_in_conditions(family: str) -> None:
    pipeline = FAMILIES[family]()
    made = calibration_conditions(pipeline, QuantizeConfig(), 6)
    if conditioning_kind(pipeline) == "none":
        assert made is None
        return
    assert made is not None
    assert len(made) == 6
    evaluated = condition_inputs(pipeline, "evaluation", 1000)
    assert evaluated is not None
    assert not {str(value) for value in evaluated} & {label.removeprefix("class ") for label in made.labels}


def test_given_conditions_are_taken_in_order_and_over_again() -> None:
    labels = calibration_conditions(FAMILIES["ldm-class"](), QuantizeConfig(conditions=(3, 1)), 5)
    prompts = calibration_conditions(FAMILIES["sd"](), QuantizeConfig(conditions=("red", "an app")), 3)
    assert labels is not None
    assert prompts is not None
    assert labels.labels == ["class 3", "class 1", "class 3", "class 1", "class 3"]
    assert prompts.labels == ["red", "an app", "red"]


@pytest.mark.parametrize(
    ("family", "given", "complaint"),
    [
        ("ldm-vq", ("a cat",), "LDMPipeline is unconditional"),
        ("sd", (3,), "takes prompts"),
        ("ldm-class", ("a cat",), "takes class labels"),
    ],
)
def test_conditions_that_the_model_does_not_take_are_refused(
    family: str, given: tuple[str, ...] | tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        calibration_conditions(FAMILIES[family](), QuantizeConfig(conditions=given), 2)


def test_conditions_survive_the_round_trip_of_a_config() -> None:
    for given in (("1", "two"), (1, 2), None):
        made = QuantizeConfig(conditions=given)
        assert QuantizeConfig.model_validate_json(made.model_dump_json()).conditions == given
    with pytest.raises(ValueError, match="conditions"):
        QuantizeConfig(conditions=())


def test_there_is_something_to_guide_in_every_conditional_family() -> None:
    for family in CONDITIONAL:
        made = calibration_conditions(FAMILIES[family](), QuantizeConfig(), 2)
        assert made is not None
        assert made.uncond is not None
        assert not torch.equal(made.uncond["encoder_hidden_states"], made.cond["encoder_hidden_states"])
