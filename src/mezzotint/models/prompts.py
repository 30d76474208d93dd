"""Prompts: those built in for text models, those beside a model, and files of them.

The built-in ones are everyday scenes, made of three lists, for models of photographs. Prompt (i, j) is
"<subject i> <place j><style>", the style chosen by i and j. Every third combination, (i + j) % 3 == 0, is for
evaluation, so both splits hold every subject, place and style, and no prompt is in both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from mezzotint.errors import ConfigError, ModelError

PROMPTS_FILE = "prompts.json"

SUBJECTS = (
    "a brown dog",
    "two grey cats",
    "a white horse",
    "a flock of sheep",
    "an elephant with its calf",
    "a small yellow bird",
    "a cow with a bell",
    "three ducks",
    "a bear cub",
    "a sleeping fox",
    "a man with an umbrella",
    "a woman riding a bicycle",
    "a child flying a kite",
    "an old couple on a bench",
    "a boy with a skateboard",
    "a girl eating ice cream",
    "a cook holding a pan",
    "a farmer with a straw hat",
    "two people playing tennis",
    "a group of friends having a picnic",
    "a red bus",
    "a blue motorcycle",
    "an old steam train",
    "a wooden sailing boat",
    "a yellow taxi",
    "a fire engine",
    "a parked bicycle",
    "a small airplane",
    "a pile of suitcases",
    "a green tractor",
    "a bowl of oranges",
    "a slice of chocolate cake",
    "a pizza with tomatoes and basil",
    "a basket of fresh bread",
    "a plate of noodles",
    "a cup of coffee",
    "a bunch of bananas",
    "a vase of sunflowers",
    "a glass of lemonade",
    "a bowl of soup with a spoon",
    "a wooden chair",
    "a round table with four plates",
    "an open book",
    "a large clock",
    "a stack of old newspapers",
    "a teddy bear",
    "a laptop and a lamp",
    "a striped umbrella",
)
PLACES = (
    "beside a lake",
    "on a sandy beach",
    "in a snowy field",
    "in front of a brick wall",
    "on a busy city street",
    "in a quiet village square",
    "under a large tree",
    "in a sunny kitchen",
    "next to a window",
    "on a wooden floor",
    "at a railway station",
    "in a garden full of flowers",
    "near a stone bridge",
    "on a mountain path",
    "in an empty parking lot",
    "at an outdoor market",
    "behind a white fence",
    "in the rain",
)
STYLES = (
    "",
    ", seen from above",
    ", close up",
    ", at sunset",
    ", in the early morning",
    ", a black and white photograph",
)


def built_in_prompts(split: Literal["calibration", "evaluation"]) -> list[str]:
    """The prompts of a split, all different: 576 for calibration, 288 for evaluation."""
    wanted = split == "evaluation"
    return [
        f"{subject} {place}{STYLES[(5 * i + j) % len(STYLES)]}"
        for i, subject in enumerate(SUBJECTS)
        for j, place in enumerate(PLACES)
        if ((i + j) % 3 == 0) == wanted
    ]


def read_prompt_splits(path: Path) -> dict[str, list[str]]:
    """{"calibration": [...], "evaluation": [...]} of a model's prompts.json. ModelError if it is anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    splits: dict[str, list[str]] = {}
    for split in ("calibration", "evaluation"):
        prompts = data.get(split) if isinstance(data, dict) else None
        if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ModelError(f'{path}: expected {{"calibration": [...], "evaluation": [...]}} with prompts in both')
        splits[split] = list(dict.fromkeys(prompts))
    shared = set(splits["calibration"]) & set(splits["evaluation"])
    if shared:
        raise ModelError(
            f"{path}: {len(shared)} prompts are in both splits, the first is {min(shared)!r}; keep them apart"
        )
    return splits


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file: one a line, a JSON list of texts, or COCO captions (the first caption of each image).

    Raises:
        ConfigError: the file cannot be read, or holds no prompts.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: prompts cannot be read from it ({error})") from error
    captions = data.get("annotations") if isinstance(data, dict) else None
    prompts = data if captions is None else _first_captions(captions)
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(f"{path}: expected a JSON list of prompts, or the captions of COCO (a list `annotations`)")
    found = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not found:
        raise ConfigError(f"{path}: holds no prompts; write one a line")
    return found


def _first_captions(annotations: Any) -> list[Any]:
    """The first caption of each image, in the order of the file."""
    first: dict[Any, Any] = {}
    for entry in annotations if isinstance(annotations, list) else [None]:
        values = entry if isinstance(entry, dict) else {}
        first.setdefault(values.get("image_id"), values.get("caption"))
    return list(first.values())
