"""Texts for the text-conditional model: emoji names, the style of a set, and recoloured drawings with their colour.

An emoji's name and the set it comes from give "dog face" and "dog face, flat". So that colours mean something, drawings
of animals, plants, food and hearts that have one leading hue are recoloured too, and called "<colour> <noun>":

    h' = h + (target - peak)  for pixels whose hue h is within 60 degrees of the drawing's leading hue `peak`       (1)

    h        hue, degrees             pixels of other hues (the leaf of an apple) and of no hue stay as they are
    noun     the name without its own colour word: "red apple" and "green apple" are both apples

Some (colour, noun) pairs, chosen by a hash, are never shown: both words are known from other pairs, their combination
is new. They are what is evaluated, with the held-out names that consist of known words; calibration uses texts of the
training images. The two lists share no text.
"""

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

STYLES = {"noto": "cartoon", "noto-v1": "blob", "fluent-emoji": "shaded", "fluent-emoji-flat": "flat"}
COLOURS = {"red": 0.0, "orange": 28.0, "yellow": 50.0, "green": 120.0, "blue": 215.0, "purple": 280.0, "pink": 330.0}
RANGES = {"red": (-15, 15), "orange": (15, 40), "yellow": (40, 68), "green": (68, 165), "blue": (165, 260),
          "purple": (260, 310), "pink": (310, 345)}  # degrees: what a leading hue is called  # fmt: skip
COLOUR_WORD = re.compile(r"\b(light |brown |red |green |blue |yellow |purple |orange |pink |black |white |grey )+")
RECOLOURED = {"Animals & Nature", "Food & Drink"}
UNSEEN_PERCENT = 12  # of the (colour, noun) pairs
CALIBRATION_TEXTS, EVALUATION_TEXTS = 1024, 256

Word = str


@dataclass(frozen=True)
class Captioned:
    """Drawings with texts: uint8 [N, S, S, 3], the texts of each, and what share of the draws each gets (sum 1)."""

    images: np.ndarray
    texts: list[list[str]]
    flippable: np.ndarray
    weights: np.ndarray


def hue_saturation_value(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in 0..1, each float32 [...], of RGB uint8 [..., 3]."""
    x = images.astype(np.float32) / 255
    value, low = x.max(-1), x.min(-1)
    chroma = value - low
    safe = np.where(chroma > 0, chroma, 1)
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    sector = np.where(value == r, ((g - b) / safe) % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    return sector * 60 * (chroma > 0), np.where(value > 0, chroma / np.where(value > 0, value, 1), 0), value


def to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The inverse of `hue_saturation_value`: uint8 [..., 3]."""
    k = (np.array([5, 3, 1], dtype=np.float32) + hue[..., None] / 60) % 6
    x = value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.rint(x * 255).astype(np.uint8)


def distance(hue: np.ndarray, peak: float) -> np.ndarray:
    """Degrees between hues, 0 .. 180."""
    return np.abs((hue - peak + 180) % 360 - 180)


def leading_hue(image: np.ndarray) -> float | None:
    """The hue, in degrees, that most of the drawing has; None if it has several or is mostly grey."""
    hue, saturation, value = hue_saturation_value(image)
    drawn = image.min(-1) < 245
    mass = saturation * value * (drawn & (saturation > 0.2) & (value > 0.15))
    if (mass > 0).sum() < 0.45 * drawn.sum() or not mass.any():
        return None
    histogram = np.bincount((hue // 5).astype(int).ravel() % 72, weights=mass.ravel(), minlength=72)
    around = sum(np.roll(histogram, shift) for shift in range(-4, 5))  # 45 degrees
    best = int(around.argmax())
    if around[best] < 0.7 * histogram.sum():
        return None
    offsets = (hue - best * 5 - 2.5 + 180) % 360 - 180
    near = mass * (np.abs(offsets) < 25)
    return float((best * 5 + 2.5 + (offsets * near).sum() / near.sum()) % 360)


def colour_name(hue: float) -> str:
    """What a leading hue is called."""
    return next(name for name, (low, high) in RANGES.items() if low <= hue < high or low <= hue - 360 < high)


def recolour(image: np.ndarray, peak: float, colour: str) -> np.ndarray:
    """Equation (1). Dark drawings become lighter, or a brown bear would be blue only to the eye of a computer."""
    hue, saturation, value = hue_saturation_value(image)
    chosen = (distance(hue, peak) < 60) & (saturation > 0)
    typical = float(np.median(value[chosen & (saturation > 0.2)]))
    lighter = value ** min(1.0, np.log(0.85) / np.log(min(typical, 0.99)))
    paler = 0.65 if colour == "pink" else 1.0
    moved = (hue + COLOURS[colour] - peak) % 360
    return to_rgb(np.where(chosen, moved, hue), np.where(chosen, saturation * paler, saturation),
                  np.where(chosen, lighter, value))  # fmt: skip


def noun_of(row: dict[str, Any]) -> str | None:
    """The name without colour words, of a drawing that may be recoloured, else None."""
    heart = "heart" in row["name"] and not re.search("face|cat|speech", row["name"])
    return COLOUR_WORD.sub("", row["text"]) if row["group"] in RECOLOURED or heart else None


def is_unseen(colour: str, noun: str) -> bool:
    """Whether the pair is kept from training; depends on nothing but the words."""
    return int(hashlib.sha256(f"{colour} {noun}".encode()).hexdigest(), 16) % 100 < UNSEEN_PERCENT


def with_style(text: str, row: dict[str, Any]) -> str:
    """ "dog face, flat"."""
    return f"{text}, {STYLES[row['source']]}"


def usable(row: dict[str, Any]) -> bool:
    """Names that tell directions apart are left out: others are mirrored, so "right" could mean nothing."""
    return not re.search("facing|left|right", row["name"])


def caption(pixels: np.ndarray, table: list[dict[str, Any]], *, recoloured: float = 0.35) -> Captioned:
    """Drawings as they are and recoloured, with four texts each; `recoloured` is the share of draws of the latter."""
    images, texts, flippable, is_copy = [], [], [], []
    for image, row in zip(pixels, table, strict=True):
        if not usable(row):
            continue
        noun, peak = noun_of(row), None
        if noun is not None:
            peak = leading_hue(image)
        named = row["text"]
        if peak is not None and noun == row["text"] and not is_unseen(colour_name(peak), noun):
            named = f"{colour_name(peak)} {noun}"
        images.append(image)
        texts.append([row["text"], with_style(row["text"], row), named, with_style(named, row)])
        flippable.append(row["flippable"])
        is_copy.append(False)
        for colour in COLOURS if peak is not None else ():
            if colour == colour_name(peak) or is_unseen(colour, noun):
                continue
            images.append(recolour(image, peak, colour))
            texts.append([f"{colour} {noun}", with_style(f"{colour} {noun}", row)] * 2)
            flippable.append(row["flippable"])
            is_copy.append(True)
    copies = np.array(is_copy)
    weights = np.where(copies, recoloured / max(copies.sum(), 1), (1 - recoloured) / (~copies).sum())
    return Captioned(np.stack(images), texts, np.array(flippable), weights / weights.sum())


def unseen_pairs(texts: list[list[str]], least: int = 3) -> list[str]:
    """ "<colour> <noun>" of the pairs kept from training whose noun was shown in at least `least` colours."""
    shown: dict[str, set[str]] = defaultdict(set)
    for group in texts:
        for text in group:
            colour, _, noun = text.partition(" ")
            if colour in COLOURS and noun and "," not in noun:
                shown[noun].add(colour)
    pairs = [(colour, noun) for noun, seen in shown.items() if len(seen) >= least for colour in COLOURS]
    return sorted(f"{colour} {noun}" for colour, noun in pairs if is_unseen(colour, noun) and colour not in shown[noun])


def split_prompts(captioned: Captioned, held_out: list[dict[str, Any]]) -> dict[str, list[str]]:
    """{"calibration": texts of the training images, "evaluation": new ones}; disjoint, in an order of a hash."""
    trained = {text for group in captioned.texts for text in group}
    words = Counter(word for text in trained for word in re.findall(r"\w+", text))
    names = {row["text"] for row in held_out if usable(row)}
    known = {name for name in names if all(words[word] >= 4 for word in re.findall(r"\w+", name))}
    new = (set(unseen_pairs(captioned.texts)) | known) - trained
    order = lambda texts: sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())  # noqa: E731
    return {"calibration": order(trained)[:CALIBRATION_TEXTS], "evaluation": order(new)[:EVALUATION_TEXTS]}


def learn_merges(texts: list[str], count: int) -> list[str]:
    """`count` byte-pair merges, "a b" each, most frequent first (Sennrich et al. 2016), of lower-case words.

    A word ends in "</w>", as in CLIP's vocabulary. Ties go to the pair that comes first in the alphabet.
    """
    frequency = Counter(word for text in texts for word in re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()))
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in frequency}
    merges: list[str] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += frequency[word]
        if not pairs:
            break
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(f"{first} {second}")
        words = {word: merge(parts, first, second) for word, parts in words.items()}
    return merges


def merge(parts: list[str], first: str, second: str) -> list[str]:
    """`parts` with every `first, second` joined."""
    result: list[str] = []
    for part in parts:
        if result and result[-1] == first and part == second:
            result[-1] = first + second
        else:
            result.append(part)
    return result
