"""Every row of the fixtures: what the original implementations computed, our importer and samplers compute too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from checkpoint_fixtures import SMALL, Fixture, compute_rows, tolerance

NAMES = ["ddim-cifar10", "ldm4-bedroom", "ldm4-imagenet", "ldm8-church", "sd-v1"]


def check_all_rows(fixture: Fixture, folder: Path, *, config: bool) -> None:
    checkpoint = fixture.write(folder, config=config)
    errors = {row: fixture.error(row, output) for row, output in compute_rows(fixture, checkpoint)}
    assert errors.keys() == fixture.data["outputs"].keys()
    assert {row: error for row, error in errors.items() if not error <= tolerance(row)} == {}


@pytest.mark.parametrize("name", NAMES)
def test_small_models_agree_with_the_originals(name: str, tmp_path: Path) -> None:
    check_all_rows(Fixture.read(SMALL / f"{name}.json"), tmp_path, config=True)


def test_there_is_a_test_for_every_file() -> None:
    assert sorted(path.stem for path in SMALL.glob("*.json")) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_published_sizes_agree_and_are_recognised_without_a_yaml(name: str, tmp_path: Path) -> None:
    """Needs the full fixtures, which are not in the repository: MEZZOTINT_FIXTURES names their folder."""
    folder = os.environ.get("MEZZOTINT_FIXTURES")
    if folder is None:
        pytest.skip("MEZZOTINT_FIXTURES does not name a folder with fixtures")
    check_all_rows(Fixture.read(Path(folder) / f"{name}.json"), tmp_path, config=False)


def test_a_wrong_output_is_seen() -> None:
    fixture = Fixture.read(SMALL / "ddim-cifar10.json")
    x = fixture.input("x")
    assert fixture.error("eps", x) > 0.1
    with pytest.raises(ValueError, match=r"ddim-cifar10 eps: expected \[2, 3, 32, 32\], got \[1, 3, 32, 32\]"):
        fixture.error("eps", x[:1])
