"""The zoo lists what is in the files, and the models that ship are as the list says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mezzotint.errors import ModelError
from mezzotint.models import zoo
from mezzotint.models.load import load
from tiny import tiny_pipeline

CARD = """---
license: CC-BY-4.0
tags: [diffusion]
---
# Tiny

![samples](samples.png)

Random weights on
3 x 16 x 16. Not trained.

More text.
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source checkout with one installed model and two in zoo/models, one of them of the same name."""
    package = tmp_path / "src" / "mezzotint"
    monkeypatch.setattr(zoo, "_PACKAGE", package)
    for folder in (package / "embedded/one", tmp_path / "zoo/models/one", tmp_path / "zoo/models/two"):
        tiny_pipeline().save_pretrained(folder)
    (package / "embedded/one/README.md").write_text(CARD)
    (package / "embedded/not a model").mkdir()
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def test_the_numbers_are_those_of_the_files(checkout: Path) -> None:
    one, two = zoo.list_models()
    assert (one.name, one.description, one.licence) == ("one", "Random weights on 3 x 16 x 16.", "CC-BY-4.0")
    assert one.folder == checkout / "src/mezzotint/embedded/one"
    assert one.parameters == sum(p.numel() for p in load(one.folder).unet.parameters())
    assert (two.name, two.description, two.licence) == ("two", "", "")
    assert two.parameters == one.parameters


def test_models_of_a_checkout_need_a_checkout(checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    assert list(zoo.model_folders()) == ["one"]


def test_a_card_may_say_its_description(checkout: Path) -> None:
    (checkout / "zoo/models/two/README.md").write_text("---\ndescription: Short.\n---\nLong.\n")
    assert zoo.list_models()[1].description == "Short."
    (checkout / "zoo/models/two/README.md").write_text("# Title\n\nNo front matter.\n")
    assert zoo.list_models()[1].description == "No front matter."


def test_damaged_files_are_named(checkout: Path) -> None:
    (checkout / "zoo/models/two/README.md").write_text("---\n: [\n---\n")
    with pytest.raises(ModelError, match=r"two/README\.md: its front matter is no YAML"):
        zoo.list_models()
    (checkout / "zoo/models/two/README.md").unlink()
    (checkout / "zoo/models/two/unet/diffusion_pytorch_model.safetensors").write_bytes(b"12345678")
    with pytest.raises(ModelError, match=r"two/unet/.*: not a safetensors file"):
        zoo.list_models()


def test_every_listed_model_loads() -> None:
    for model in zoo.list_models():
        pipeline = load(model.name)
        assert model.parameters == sum(p.numel() for p in pipeline.unet.parameters())
        assert model.licence, f"{model.name}: its card does not say the licence"
        assert model.description, f"{model.name}: its card does not describe it"
