"""Prompts and labels become rows; calibration and evaluation never share an input."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import CLASSES, CONDITIONAL, FAMILIES, TEXT_TOKENS, TEXT_WIDTH, tiny_ldm_class, tiny_sd
from mezzotint.errors import ConfigError, ModelError
from mezzotint.models.conditioning import condition_inputs, encode_conditions
from mezzotint.models.conditions import Conditions
from mezzotint.models.prompts import built_in_prompts, read_prompt_splits, read_prompts
from tiny import tiny_pipeline

PROMPTS = ["a red apple", "an ant", "a red apple", ""]
STATES = "encoder_hidden_states"


@pytest.fixture(scope="module")
def text() -> Any:
    return tiny_sd()


@pytest.fixture(scope="module")
def classes() -> Any:
    return tiny_ldm_class()


def encoded(pipeline: Any, inputs: Any, **options: Any) -> Conditions:
    found = encode_conditions(pipeline, inputs, **options)
    assert found is not None
    return found


def test_prompts_are_encoded_as_stable_diffusion_does(text: Any) -> None:
    found = encoded(text, PROMPTS, batch_size=2)
    assert found.cond[STATES].shape == (4, TEXT_TOKENS, TEXT_WIDTH)
    assert found.labels == PROMPTS
    theirs, nothing = text.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=[""] * 4
    )
    torch.testing.assert_close(found.cond[STATES], theirs, rtol=1e-5, atol=1e-5)
    assert found.uncond is not None
    torch.testing.assert_close(found.uncond[STATES], nothing, rtol=1e-5, atol=1e-5)


def test_equal_prompts_have_equal_rows_and_others_do_not(text: Any) -> None:
    states = encoded(text, PROMPTS).cond[STATES]
    assert torch.equal(states[0], states[2])
    assert (states[0] - states[1]).abs().max() > 1e-2


def test_each_distinct_prompt_is_encoded_once(text: Any) -> None:
    rows: list[int] = []
    handle = text.text_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    encoded(text, PROMPTS * 5, batch_size=2)
    handle.remove()
    assert sum(rows) <= len(set(PROMPTS)) + 1  # and the empty one


def test_labels_are_rows_of_the_class_table(classes: Any) -> None:
    found = encoded(classes, [3, 0, 3])
    table = classes.class_embedder.embedding.weight
    assert found.labels == ["class 3", "class 0", "class 3"]
    assert torch.equal(found.cond[STATES], table[[3, 0, 3]][:, None])
    assert found.uncond is not None
    assert torch.equal(found.uncond[STATES], table[[CLASSES] * 3][:, None])


def test_long_prompts_are_cut_and_logged(text: Any, caplog: pytest.LogCaptureFixture) -> None:
    long = "a cat and another cat and a third cat"
    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        found = encoded(text, [long, "a cat"])
    assert found.cond[STATES].shape == (2, TEXT_TOKENS, TEXT_WIDTH)
    [record] = caplog.records
    assert record.getMessage() == f"1 of 2 prompts are cut to 16 tokens, the first is {long!r}"


@pytest.mark.parametrize("name", FAMILIES)
def test_splits_are_disjoint_whatever_the_seeds(name: str) -> None:
    pipeline = FAMILIES[name]()
    calibration = condition_inputs(pipeline, "calibration", 700, seed=3)
    evaluation = condition_inputs(pipeline, "evaluation", 700, seed=4)
    if name not in CONDITIONAL:
        assert calibration is evaluation is None
        assert encode_conditions(pipeline, None) is None
        return
    assert calibration is not None
    assert evaluation is not None
    assert len(calibration) == len(evaluation) == 700
    assert not set(map(str, calibration)) & set(map(str, evaluation))


def test_class_splits_use_every_class_and_never_the_empty_one(classes: Any) -> None:
    assert set(condition_inputs(classes, "calibration", 100) or []) == {0, 2, 4, 6}
    assert set(condition_inputs(classes, "evaluation", 100) or []) == {1, 3, 5, 7}


@given(count=st.integers(0, 900), seed=st.integers(0, 5))
def test_the_first_inputs_of_more_are_those_of_fewer(count: int, seed: int) -> None:
    pipeline = SD
    many = condition_inputs(pipeline, "evaluation", 900, seed)
    assert many is not None
    assert condition_inputs(pipeline, "evaluation", count, seed) == many[:count]
    assert many[:288] == many[288:576]  # gone through again in the same order
    assert sorted(many[:288]) == sorted(built_in_prompts("evaluation"))


SD = tiny_sd()


def test_built_in_prompts_are_many_and_disjoint() -> None:
    calibration, evaluation = built_in_prompts("calibration"), built_in_prompts("evaluation")
    assert len(set(calibration)) == len(calibration) >= 512
    assert len(set(evaluation)) == len(evaluation) >= 256
    assert not set(calibration) & set(evaluation)
    assert all(len(prompt.split()) <= 20 for prompt in calibration + evaluation)


def test_prompts_beside_the_model_win(tmp_path: Path) -> None:
    tiny_sd().save_pretrained(tmp_path)
    (tmp_path / "prompts.json").write_text(json.dumps({"calibration": ["an ant", "an ant"], "evaluation": ["a", "b"]}))
    pipeline = type(SD).from_pretrained(tmp_path)
    assert condition_inputs(pipeline, "calibration", 2) == ["an ant", "an ant"]
    assert sorted(condition_inputs(pipeline, "evaluation", 2) or []) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"calibration": ["a"]}', 'expected {"calibration"'),
        ('{"calibration": ["a"], "evaluation": [1]}', 'expected {"calibration"'),
        ('["a"]', 'expected {"calibration"'),
        ('{"calibration": ["a", "b"], "evaluation": ["b"]}', "1 prompts are in both splits, the first is 'b'"),
    ],
)
def test_unusable_prompt_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=message):
        read_prompt_splits(path)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("ddim", ["a red apple"], "DDIMPipeline is unconditional: it takes no prompts and no class labels"),
        ("sd", None, r"StableDiffusionPipeline takes prompts \(text\), got none"),
        ("sd", [1], r"takes prompts \(text\), got \[1\]"),
        ("sd", [], r"takes prompts \(text\), got an empty list"),
        ("ldm-class", ["apple"], r"takes class labels \(whole numbers\), got \['apple'\]"),
        ("ldm-class", [True], "takes class labels"),
        ("ldm-class", [2, 8], "class label 8: ClassConditionalPipeline has the classes 0 to 7"),
        ("ldm-class", [-1], "class label -1: "),
    ],
)
def test_inputs_that_do_not_fit_are_named(name: str, inputs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encode_conditions(FAMILIES[name](), inputs)


def test_missing_parts_are_named() -> None:
    text: Any = tiny_sd()
    text.register_modules(text_encoder=None)
    with pytest.raises(ModelError, match="StableDiffusionPipeline has no text_encoder, so prompts cannot be encoded"):
        encode_conditions(text, ["a"])
    classes: Any = tiny_ldm_class()
    classes.register_modules(class_embedder=None)
    with pytest.raises(ModelError, match="has no class_embedder, so class labels cannot be encoded"):
        encode_conditions(classes, [1])
    assert condition_inputs(tiny_pipeline(), "evaluation", 3) is None


def test_prompt_files_of_each_kind(tmp_path: Path) -> None:
    lines, texts, coco = tmp_path / "p.txt", tmp_path / "p.json", tmp_path / "captions.json"
    lines.write_text("a red apple\n\n  an ant  \n")
    texts.write_text(json.dumps(["a red apple", "an ant"]))
    captions = [(7, "a red apple"), (7, "an apple on a table"), (3, "an ant\n")]
    coco.write_text(
        json.dumps({"annotations": [{"image_id": i, "id": n, "caption": c} for n, (i, c) in enumerate(captions)]})
    )
    for path in (lines, texts, coco):
        assert read_prompts(path) == ["a red apple", "an ant"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "p.txt: holds no prompts"),
        ("p.json", "[]", "p.json: holds no prompts"),
        ("p.json", "{", "p.json: prompts cannot be read from it"),
        ("p.json", '{"captions": []}', "p.json: expected a JSON list of prompts, or the captions of COCO"),
        ("p.json", '{"annotations": [{"image_id": 1}]}', "p.json: expected a JSON list"),
        ("p.json", '{"annotations": 3}', "p.json: expected a JSON list"),
    ],
)
def test_files_without_prompts_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)
    with pytest.raises(ConfigError, match="nowhere.txt: prompts cannot be read from it"):
        read_prompts(tmp_path / "nowhere.txt")
