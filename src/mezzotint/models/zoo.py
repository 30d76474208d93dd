"""The models that come with the package, read from their files.

Each is a folder of diffusers' own format, in one of three places; the first that has a name wins:

    src/mezzotint/embedded/<name>   installed with the package
    $MEZZOTINT_ZOO/<name>           a folder of the user's, if that variable is set
    zoo/models/<name>               in a source checkout; parts that models share are relative links there

What the list says about a model is in its files: the parameters in the
safetensors headers, the description and the licence in the model card (README.md, front matter as on the hub).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from mezzotint.errors import ModelError

DEFAULT_MODEL = "ddim-emoji"
PIPELINE_INDEX = "model_index.json"
ZOO_VARIABLE = "MEZZOTINT_ZOO"  # of the environment: a folder with more models
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        folder: a diffusers pipeline.
        description: of the card's front matter, else its first sentence; "" without a card.
        parameters: of the denoiser.
        licence: SPDX identifier of the weights; "" if the card does not say.
    """

    name: str
    folder: Path
    description: str
    parameters: int
    licence: str


def list_models() -> list[ZooModel]:
    """All models of the zoo by name; an installed model hides one of the same name elsewhere."""
    return [_read(name, folder) for name, folder in sorted(model_folders().items())]


def model_folders() -> dict[str, Path]:
    """{name: folder} of the models there are. ModelError if MEZZOTINT_ZOO names no folder."""
    found: dict[str, Path] = {}
    for root in _roots():
        for index in sorted(root.glob(f"*/{PIPELINE_INDEX}")):
            found.setdefault(index.parent.name, index.parent)
    return found


def _roots() -> list[Path]:
    roots = [_PACKAGE / "embedded"]
    if named := os.environ.get(ZOO_VARIABLE):
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise ModelError(
                f"{ZOO_VARIABLE}={named}: no such folder; name one whose subfolders are models, or unset it"
            )
        roots.append(folder)
    checkout = _PACKAGE.parents[1]
    if (checkout / "pyproject.toml").is_file():
        roots.append(checkout / "zoo" / "models")
    return roots


def _read(name: str, folder: Path) -> ZooModel:
    card, text = _card(folder / "README.md")
    parameters = sum(_parameters(path) for path in sorted((folder / "unet").glob("*.safetensors")))
    description = str(card.get("description") or _first_sentence(text))
    return ZooModel(name, folder, description, parameters, str(card.get("license", "")))


def _parameters(path: Path) -> int:
    """Number of values in a safetensors file, from its header."""
    try:
        with safe_open(path, framework="pt") as tensors:
            return sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file ({error})") from error


def _card(path: Path) -> tuple[dict[str, Any], str]:
    """(front matter, text) of a model card; both empty if there is none."""
    if not path.is_file():
        return {}, ""
    content = path.read_text(encoding="utf-8")
    if not content.startswith("---\n"):
        return {}, content
    front, _, text = content.removeprefix("---\n").partition("\n---\n")
    try:
        fields = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise ModelError(f"{path}: its front matter is no YAML ({str(error).splitlines()[0]})") from error
    return (fields if isinstance(fields, dict) else {}), text


def _first_sentence(text: str) -> str:
    """The first sentence of the first paragraph that is no heading, on one line."""
    paragraphs = (paragraph.strip() for paragraph in text.split("\n\n"))
    paragraph = next((" ".join(p.split()) for p in paragraphs if p and not p.startswith(("#", "!", "|", "<"))), "")
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.rstrip()
