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
    monkeypatch.delenv(zoo.ZOO_VARIABLE, raising=False)
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


def test_a_folder_of_the_user_comes_between(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    for name in ("one", "two", "three"):
        tiny_pipeline().save_pretrained(mine / name)
    monkeypatch.setenv(zoo.ZOO_VARIABLE, str(mine))
    assert zoo.model_folders() == {
        "one": checkout / "src/mezzotint/embedded/one",
        "two": mine / "two",
        "three": mine / "three",
    }
    monkeypatch.setenv(zoo.ZOO_VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(ModelError, match=r"MEZZOTINT_ZOO=.*absent: no such folder; name one whose subfolders"):
        zoo.model_folders()
    monkeypatch.setenv(zoo.ZOO_VARIABLE, "")
    assert zoo.model_folders()["two"] == checkout / "zoo/models/two"


def test_the_default_model_is_the_installed_one(checkout: Path) -> None:
    assert zoo.DEFAULT_MODEL == "ddim-emoji"
    tiny_pipeline().save_pretrained(checkout / "src/mezzotint/embedded" / zoo.DEFAULT_MODEL)
    tiny_pipeline().save_pretrained(checkout / "zoo/models" / zoo.DEFAULT_MODEL)
    assert zoo.model_folders()[zoo.DEFAULT_MODEL] == checkout / "src/mezzotint/embedded" / zoo.DEFAULT_MODEL


def test_parts_may_be_links(checkout: Path) -> None:
    model, parts = checkout / "zoo/models/two", checkout / "zoo/models/parts"
    (model / "unet").rename(parts)
    (model / "unet").symlink_to(Path("..") / "parts")
    assert [found.name for found in zoo.list_models()] == ["one", "two"]
    assert zoo.list_models()[1].parameters == zoo.list_models()[0].parameters
    assert load(model).unet.config.sample_size == load(checkout / "src/mezzotint/embedded/one").unet.config.sample_size


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
