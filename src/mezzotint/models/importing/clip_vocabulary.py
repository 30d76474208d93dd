"""The tokenizer of CLIP from the vocabulary file of open-clip-torch.

That file is the list of byte-pair merges in the order in which they were learned; the tokens follow from it:

    256 bytes, 256 bytes that end a word, 48,894 merges, <|startoftext|>, <|endoftext|>       49,408 together

Bytes are written as printable characters: those that are printable stand for themselves, the others for the characters
from U+0100 on. Source: github.com/openai/CLIP, simple_tokenizer.py.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mezzotint.errors import MissingExtraError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of CLIP. MissingExtraError if open-clip-torch, which holds the vocabulary, is not installed."""
    return make_tokenizer(read_merges(vocabulary_file()))


def vocabulary_file() -> Path:
    """The file in the installed package, found without importing it."""
    package = find_spec("open_clip")
    for place in (package.submodule_search_locations or []) if package else []:
        if (Path(place) / VOCABULARY).is_file():
            return Path(place) / VOCABULARY
    raise MissingExtraError("metrics", "open_clip")


def read_merges(path: Path) -> list[str]:
    """The merges, two tokens a line; the first line of the file is a comment, and those after CLIP's are not used."""
    with gzip.open(path, mode="rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : MERGES + 1]


def make_tokenizer(merges: list[str]) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind with `merges`."""
    from transformers import CLIPTokenizer

    alphabet = byte_characters()
    tokens = [*alphabet, *(character + END_OF_WORD for character in alphabet)]
    tokens += [merge.replace(" ", "") for merge in merges] + [START, END]
    config: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CONTEXT,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    with tempfile.TemporaryDirectory() as name:  # files are what every version of transformers reads
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def byte_characters() -> list[str]:
    """One printable character for each of the 256 bytes, in the order of CLIP's vocabulary: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
