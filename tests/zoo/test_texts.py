"""Texts, colours and classes: what is never shown stays unseen, the splits share nothing, colours are what is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from captions import (
    COLOURS,
    Captioned,
    caption,
    colour_name,
    distance,
    hue_saturation_value,
    is_unseen,
    leading_hue,
    learn_merges,
    noun_of,
    recolour,
    split_prompts,
    to_rgb,
    with_style,
)
from labels import CLASSES, class_of
from latents import learn_tokenizer, tokenize
from training import GROUPS, load_table


@pytest.fixture
def captioned(data: Path) -> Captioned:
    pixels, table = load_table(data / "emoji-32.npz", GROUPS)
    train = [i for i, row in enumerate(table) if not row["held_out"]]
    return caption(pixels[train], [table[i] for i in train], recoloured=0.25)


def texts_of(captioned: Captioned) -> set[str]:
    return {text for texts in captioned.texts for text in texts}


def test_colours_survive_the_way_to_hue_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (500, 3), dtype=np.uint8)
    assert np.abs(to_rgb(*hue_saturation_value(pixels)).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("colour", COLOURS)
def test_a_recoloured_drawing_has_the_colour_and_the_rest_stays(colour: str) -> None:
    image = np.full((16, 16, 3), 255, dtype=np.uint8)
    image[2:12, 2:12] = (200, 40, 30)  # red, the leading hue
    image[12:14, 2:6] = (30, 160, 40)  # a green leaf
    peak = leading_hue(image)
    assert peak is not None
    assert colour_name(peak) == "red"
    changed = recolour(image, peak, colour)
    hue = hue_saturation_value(changed[5, 5])[0]
    assert distance(hue, COLOURS[colour]) < 6
    assert colour_name(leading_hue(changed)) == colour
    assert (changed[12:14, 2:6] == image[12:14, 2:6]).all()
    assert (changed[image.min(-1) == 255] == 255).all()


def test_several_hues_or_none_lead_nowhere() -> None:
    image = np.full((16, 16, 3), 255, dtype=np.uint8)
    image[2:14, 2:14] = 90
    assert leading_hue(image) is None
    image[2:14, 2:8], image[2:14, 8:14] = (230, 20, 20), (20, 20, 230)
    assert leading_hue(image) is None


def test_nouns_lose_their_colour() -> None:
    row = {"name": "red-apple", "text": "red apple", "group": "Food & Drink", "source": "noto"}
    assert noun_of(row) == "apple"
    assert noun_of({**row, "group": "People & Body"}) is None
    heart = {"name": "light-blue-heart", "text": "light blue heart", "group": "Smileys & Emotion"}
    assert noun_of(heart) == "heart"
    assert with_style("red apple", row) == "red apple, cartoon"


def test_unseen_pairs_are_in_no_training_text(captioned: Captioned) -> None:
    texts = texts_of(captioned)
    pairs = [text.split(",")[0].partition(" ") for text in texts if text.split(" ")[0] in COLOURS]
    named = {"red apple", "green apple", "blue heart"}  # names of emoji, shown as such
    assert len(pairs) > 10
    assert not [(a, b) for a, _, b in pairs if is_unseen(a, b) and f"{a} {b}" not in named]


def test_weights_are_shares_and_copies_get_theirs(captioned: Captioned) -> None:
    assert captioned.weights.sum() == pytest.approx(1)
    originals = 4 * 11  # sets, names that are trained on and say no direction
    assert captioned.weights.max() * originals == pytest.approx(0.75)
    assert len(captioned.images) == len(captioned.texts) == len(captioned.flippable) > originals
    assert not any("facing" in text for text in texts_of(captioned))


def test_calibration_and_evaluation_share_no_text(data: Path, captioned: Captioned) -> None:
    _, table = load_table(data / "emoji-32.npz", GROUPS)
    prompts = split_prompts(captioned, [row for row in table if row["held_out"]])
    assert set(prompts) == {"calibration", "evaluation"}
    assert set(prompts["calibration"]) <= texts_of(captioned)
    assert not set(prompts["evaluation"]) & texts_of(captioned)
    known = {word for text in texts_of(captioned) for word in re.findall(r"\w+", text)}
    assert prompts["evaluation"], "no pair of a known colour and a known noun was held out"
    assert all(word in known for text in prompts["evaluation"] for word in re.findall(r"\w+", text))


def test_merges_make_frequent_words_one_token(captioned: Captioned) -> None:
    assert learn_merges(["aab", "aab", "ab"], 2) == ["a b</w>", "a ab</w>"]
    tokenizer = learn_tokenizer(captioned)
    ids = tokenize(tokenizer, ["red apple", "an unknown word", ""])
    assert ids.shape == (3, tokenizer.model_max_length)
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    assert ids[0, :4].tolist() == [start, *tokenizer.convert_tokens_to_ids(["red</w>", "apple</w>"]), end]
    assert ids[2, :2].tolist() == [start, end]
    assert tokenizer.decode(ids[1], skip_special_tokens=True).strip() == "an unknown word"


@pytest.mark.parametrize(
    ("group", "name", "expected"),
    [
        ("Smileys & Emotion", "grinning-cat", "cat face with feelings"),
        ("Smileys & Emotion", "grinning-face", "laughing face"),
        ("Smileys & Emotion", "red-heart", "heart"),
        ("People & Body", "woman-cook", "woman at work"),
        ("People & Body", "waving-hand", "hand"),
        ("Animals & Nature", "polar-bear", "bear or ape"),
        ("Food & Drink", "red-apple", "fruit"),
        ("Food & Drink", "pizza", "meal"),
        ("People & Body", "footprints", None),
        ("Flags", "red-apple", None),
    ],
)
def test_classes_follow_names(group: str, name: str, expected: str | None) -> None:
    index = class_of({"group": group, "name": name})
    assert (None if index is None else CLASSES[index]) == expected


def test_class_names_are_distinct() -> None:
    assert len(set(CLASSES)) == len(CLASSES)
