"""The feature networks by name: what each makes of images, and how a table calls it.

A network maps images [N, 3, H, W] in [-1, 1] to one or several sets of features [N, F] in one pass; metrics name the
set they are made of. Networks are loaded when a metric first needs them, so FD-zoo works where no Inception weights
are. A test, or a user with a network of their own, passes another table than NETWORKS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mezzotint.evaluation.clip import CLIP_SIDES, load_clip_images, load_dino
from mezzotint.evaluation.images import ImageSet
from mezzotint.evaluation.inception import Resize, load_inception
from mezzotint.evaluation.zoo_net import load_feature_net

Progress = Callable[[int, int], None]


class Single(nn.Module):
    """A network whose output is one set of features, as a table of one."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {self.name: self.network(images)}


@dataclass(frozen=True)
class Network:
    """A feature network.

    Attributes:
        label: for tables, such as "Inception-v3".
        resize: what happens to images of another size, in words.
        load: gives the module, which maps images to {set: features}.
        sets: the sets it gives.
    """

    label: str
    resize: str
    load: Callable[[], nn.Module]
    sets: tuple[str, ...]


def make_networks(resize: Resize = "tf1") -> dict[str, Network]:
    """All feature networks; `resize` is Inception's, see `inception`."""
    return {
        "inception": Network(
            "Inception-v3 (2015-12-05)",
            f"299 px, {resize}",
            lambda: load_inception(resize),
            ("pool3", "spatial", "logits"),
        ),
        "fd-zoo": Network(
            "FD-zoo network",
            "64 px, bilinear, antialiased",
            lambda: Single(load_feature_net(), "fd-zoo"),
            ("fd-zoo",),
        ),
        "dinov2": Network(
            "DINOv2 ViT-L/14", "224 px, bicubic, antialiased", lambda: Single(load_dino(), "dinov2"), ("dinov2",)
        ),
        **{
            name: Network(
                f"CLIP ViT-L/14 at {side} px",
                f"{side} px, bicubic, antialiased",
                lambda name=name: Single(load_clip_images(name), name),  # type: ignore[misc]
                (name,),
            )
            for name, side in CLIP_SIDES.items()
        },
    }


@torch.no_grad()
def extract_features(
    images: ImageSet,
    network: nn.Module,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """{set: float32 [N, F] on the CPU} of all images. The network is moved to `device`."""
    network.to(device)
    parts: dict[str, list[Tensor]] = {}
    done = 0
    for batch in images.batches(batch_size):
        for name, features in network(batch.to(device)).items():
            parts.setdefault(name, []).append(features.float().cpu())
        done += len(batch)
        if progress is not None:
            progress(done, images.count)
    return {name: torch.cat(rows) for name, rows in parts.items()}


def network_of_set(networks: Mapping[str, Network], name: str) -> str:
    """The network that gives a set of features. KeyError if none does."""
    for network, entry in networks.items():
        if name in entry.sets:
            return network
    raise KeyError(name)


def networks_of_sets(networks: Mapping[str, Network], sets: Sequence[str]) -> list[str]:
    """The networks that give these sets, each once, in the order of the table."""
    wanted = {network_of_set(networks, name) for name in sets}
    return [name for name in networks if name in wanted]
