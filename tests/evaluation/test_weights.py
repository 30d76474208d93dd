from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from mezzotint.errors import WeightsError
from mezzotint.evaluation import weights
from mezzotint.evaluation.weights import WEIGHTS, WeightFile, find_repository, find_weights

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = WeightFile("a network", ("one.pth", "two.pth"), "https://example.org/one.pth", DIGEST[:8], 1)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(WEIGHTS, "inception", FILE)
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path / "named"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes | OSError) -> None:
    def open_url(url: str, timeout: float) -> io.BytesIO:
        assert url == FILE.url
        if isinstance(content, OSError):
            raise content
        return io.BytesIO(content)

    monkeypatch.setattr("urllib.request.urlopen", open_url)


@pytest.mark.parametrize("where", ["named/one.pth", "named/two.pth", "hub/checkpoints/two.pth"])
def test_a_file_is_found_under_each_name_in_each_place(place: Path, where: str) -> None:
    path = place / where
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert find_weights("inception") == path


def test_a_download_is_checked_and_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, CONTENT)
    path = find_weights("inception")
    assert path == place / "named" / "one.pth"
    assert path.read_bytes() == CONTENT
    serve(monkeypatch, OSError("gone"))
    assert find_weights("inception") == path
    assert [file.name for file in path.parent.iterdir()] == ["one.pth"]


def test_another_file_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b"something else")
    with pytest.raises(WeightsError, match=rf"SHA-256 begins with {DIGEST[:8]}, got"):
        find_weights("inception")


def test_no_file_and_no_network_is_an_error_that_says_what_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, OSError("no route"))
    with pytest.raises(WeightsError, match=r"one.pth \(a network\) .*no route.*https://example.org/one.pth \(1 MB\)"):
        find_weights("inception")
    assert not list((place / "named").iterdir())


def test_a_repository_is_a_folder_of_the_named_place_or_the_hubs(place: Path) -> None:
    assert find_repository("openai/clip") == "openai/clip"
    (place / "named" / "clip").mkdir(parents=True)
    assert find_repository("openai/clip") == str(place / "named" / "clip")
