"""LPIPS between images of the same seeds (Zhang et al. 2018, arXiv 1801.03924), version 0.1 with AlexNet.

    d(a, b) = sum over layers l of mean over places of  w_l . (u_l(a) - u_l(b))^2                                (1)

    u_l   float32 [N, C_l, h, w]   AlexNet's activations after its l-th ReLU, of length 1 at every place
    w_l   float32 [C_l]            weights learned from people's judgements, none negative

0 for equal images; about 0.1 is a difference one has to look for. AlexNet's weights are those of torchvision
(`weights.WEIGHTS`), w_l are in the wheel of torchmetrics. Written out because the packages that have it import
torchvision; the tests compare with the authors' own.
"""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.errors import ConfigError, MissingExtraError, WeightsError
from mezzotint.evaluation.weights import at_hand, find_weights

LINEAR = "functional/image/lpips_models/alex.pth"  # in torchmetrics
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TINY = 1e-10
SMALLEST = 32  # pixels: smaller pictures leave nothing after AlexNet's pools
BATCH = 64


class AlexNet(nn.Module):
    """The activations after each of the five ReLUs; layers have torchvision's names, `features.<n>`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        )

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


class Lpips(nn.Module):
    """Equation (1) of images [N, 3, H, W] in [-1, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = AlexNet()
        channels = [layer.out_channels for layer in self.backbone.features if isinstance(layer, nn.Conv2d)]
        self.linear = nn.ParameterList(nn.Parameter(torch.zeros(count)) for count in channels)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1))

    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        total = a.new_zeros(len(a))
        activations = (self.backbone((x - self.shift) / self.scale) for x in (a, b))
        for weight, u, v in zip(self.linear, *activations, strict=True):
            difference = (_unit(u) - _unit(v)).square()
            total = total + (difference * weight.view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        return total


def load_lpips(alexnet: Path | None = None) -> Lpips:
    """The network with its published weights; `alexnet` is a file of torchvision's weights, None finds it.

    Raises:
        MissingExtraError: torchmetrics, which has the learned weights, is not installed.
        WeightsError: AlexNet's weights are nowhere, or are others.
    """
    package = find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError("metrics", "torchmetrics")
    path = find_weights("alexnet") if alexnet is None else alexnet
    network = Lpips()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.backbone.load_state_dict({name: x for name, x in state.items() if name.startswith("features.")})
        linear = torch.load(Path(package.submodule_search_locations[0]) / LINEAR, map_location="cpu", weights_only=True)
        for index, weight in enumerate(network.linear):
            weight.data.copy_(linear[f"lin{index}.model.1.weight"].flatten())
    except (RuntimeError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: not the weights of LPIPS with AlexNet: {error}") from error
    return network.eval().requires_grad_(False)


def lpips_at_hand(height: int, width: int) -> Lpips | None:
    """The network if everything it needs is on this disk and images of this size are large enough, else None."""
    if min(height, width) < SMALLEST or find_spec("torchmetrics") is None or at_hand("alexnet") is None:
        return None
    return load_lpips()


@torch.no_grad()
def lpips_per_image(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], network: Lpips) -> Float[Tensor, " n"]:
    """LPIPS of each pair, where `network` is; grey images get three channels. ConfigError if they are too small."""
    if min(a.shape[-2:]) < SMALLEST:
        raise ConfigError(f"LPIPS: its network needs images of {SMALLEST} pixels or more, got {list(a.shape[-2:])}")
    device = network.shift.device
    found = []
    for x, y in zip(a.split(BATCH), b.split(BATCH), strict=True):
        pair = (part.to(device).float().expand(-1, 3, -1, -1) for part in (x, y))
        found.append(network(*pair).cpu())
    return torch.cat(found)


def _unit(x: Tensor) -> Tensor:
    """The activations scaled to length 1 over the channels."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + TINY)
