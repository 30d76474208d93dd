"""CLIP's tokenizer from the list of merges."""

from __future__ import annotations

import gzip
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mezzotint.errors import MissingExtraError
from mezzotint.models.importing import clip_vocabulary
from mezzotint.models.importing.clip_vocabulary import byte_characters, clip_tokenizer, read_merges

MERGES = ["i n", "t h", "a n", "r e", "c a", "ca t</w>"]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name with a short vocabulary."""
    folder = tmp_path / "site" / "open_clip"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    with gzip.open(folder / clip_vocabulary.VOCABULARY, "wt", encoding="utf-8") as file:
        file.write("\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *MERGES, "not a", "not b"]))
    monkeypatch.setattr(clip_vocabulary, "MERGES", len(MERGES))
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(folder.parent)
    return folder / clip_vocabulary.VOCABULARY


def test_only_the_merges_of_clip_are_read(installed: Path) -> None:
    assert read_merges(installed) == MERGES


def test_bytes_have_distinct_printable_characters() -> None:
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert all(len(c) == 1 and c.isprintable() for c in characters)
    assert characters[:2] == ["!", '"']


def test_tokens_are_numbered_bytes_ends_of_words_merges_marks(installed: Path) -> None:
    tokenizer = clip_tokenizer()
    first_merge = 2 * 256
    start, end = first_merge + len(MERGES), first_merge + len(MERGES) + 1
    assert len(tokenizer) == end + 1
    assert tokenizer.model_max_length == 77
    cat, bang = first_merge + MERGES.index("ca t</w>"), 256 + byte_characters().index("!")
    padded = tokenizer("Cat !", padding="max_length", max_length=6).input_ids
    assert padded == [start, cat, bang, end, end, end]


def test_without_the_package_the_error_has_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_vocabulary, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"open_clip is not installed; run: pip install 'mezzotint\[metrics\]'"):
        clip_tokenizer()


@pytest.mark.skipif(find_spec("open_clip") is None, reason="needs open-clip-torch")
def test_the_real_vocabulary() -> None:
    """Token numbers that CLIP is known for."""
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
