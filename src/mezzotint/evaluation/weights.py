"""Where the weights of feature networks are found.

A file is looked for under each of its names in these places, and downloaded to the first of them if it is in none:

    $MEZZOTINT_WEIGHTS                              if that variable is set
    <torch.hub.get_dir()>/checkpoints               ~/.cache/torch/hub/checkpoints, or under $TORCH_HOME
                                                    (torch-fidelity, pytorch-fid and torchvision put theirs there)

Networks that live in a repository of several files (CLIP, DINOv2) are looked for as a folder
$MEZZOTINT_WEIGHTS/<name>, such as `clip-vit-large-patch14`, and else where the hub client finds them, its cache first.

A file is used only if its SHA-256 begins with the digits that its publisher put into its name.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from mezzotint.errors import WeightsError

VARIABLE = "MEZZOTINT_WEIGHTS"
TIMEOUT = 30  # seconds without an answer
CHUNK = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """A published file of weights.

    Attributes:
        names: it is known under; the first is what a download is called.
        digest: first digits of its SHA-256.
        megabytes: its size, for the message.
    """

    label: str
    names: tuple[str, ...]
    url: str
    digest: str
    megabytes: int


WEIGHTS = {
    "inception": WeightFile(
        label="Inception-v3 of 2015-12-05, the network of published FIDs",
        names=("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        digest="6726825d",
        megabytes=95,
    ),
    "alexnet": WeightFile(
        label="AlexNet of torchvision, the network of LPIPS",
        names=("alexnet-owt-7be5be79.pth",),
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        digest="7be5be79",
        megabytes=244,
    ),
}


def places() -> list[Path]:
    """Folders where weights are looked for, the one that downloads go to first."""
    named = os.environ.get(VARIABLE)
    return ([Path(named).expanduser()] if named else []) + [Path(torch.hub.get_dir()) / "checkpoints"]


def find_weights(name: str) -> Path:
    """The file of WEIGHTS[name], downloaded if it is nowhere.

    Raises:
        WeightsError: it is nowhere and cannot be downloaded, or is another file than the published one.
    """
    wanted, path = WEIGHTS[name], at_hand(name)
    if path is not None:
        return _checked(path, wanted)
    return _download(wanted, places()[0] / wanted.names[0])


def at_hand(name: str) -> Path | None:
    """Where the file of WEIGHTS[name] lies on this disk, None if nowhere. Its digest is not looked at."""
    paths = (folder / file_name for folder in places() for file_name in WEIGHTS[name].names)
    return next((path for path in paths if path.is_file()), None)


def find_repository(hub_id: str) -> str:
    """What `from_pretrained` is given: $MEZZOTINT_WEIGHTS/<last part of the id> if that is a folder, else the id."""
    named = os.environ.get(VARIABLE)
    folder = Path(named).expanduser() / hub_id.rpartition("/")[2] if named else None
    return str(folder) if folder is not None and folder.is_dir() else hub_id


def repository_missing(hub_id: str, error: Exception) -> WeightsError:
    """The error for a repository that `from_pretrained` could not read."""
    reason = " ".join(str(error).split())[:200]
    return WeightsError(
        f"{hub_id}: the weights are neither on disk nor to be downloaded ({reason}); put the files of "
        f"https://huggingface.co/{hub_id} into the folder {hub_id.rpartition('/')[2]} of one that {VARIABLE} names"
    )


def _download(wanted: WeightFile, path: Path) -> Path:
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(wanted.url, timeout=TIMEOUT) as answer, part.open("wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WeightsError(
            f"{wanted.names[0]} ({wanted.label}) is not on disk and cannot be downloaded ({error}); fetch "
            f"{wanted.url} ({wanted.megabytes} MB) and put it into {path.parent}, or where {VARIABLE} points"
        ) from error
    _checked(part, wanted)
    return part.replace(path)


def _checked(path: Path, wanted: WeightFile) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(wanted.digest):
        raise WeightsError(
            f"{path}: expected {wanted.label}, whose SHA-256 begins with {wanted.digest}, got {digest[:16]}; "
            f"delete it and fetch {wanted.url}"
        )
    return path
