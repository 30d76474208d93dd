"""The feature network of FD-zoo: a small classifier of emoji drawings, shipped with the package.

    f(x) = mean over places of the last layer's activations, after ReLU                                          (1)

    x    float32 [N, 3, H, W]   images in [-1, 1], resized to 64 x 64 (bilinear, antialiased)
    f    float32 [N, 128]       features; the heads that trained them are not kept

It was trained on drawings of the kind that the zoo's models draw (zoo/train_feature_net.py): to name the class, the
artist and the amounts of damage, if any. So unlike principal components it sees *what* is drawn and whether it is drawn
cleanly, and unlike Inception it needs no download and knows nothing of photographs. Its Frechet distances are called
FD-zoo and compare models of the zoo with each other and with the zoo's drawings, nothing else.

128 features instead of Inception's 2048: a covariance of 128 features is known after some hundreds of images, and the
weights take 0.7 MB.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.errors import ModelError

SIDE = 64
FEATURES = 128
WIDTHS = (24, 40, 80, 112)  # stem at 32 x 32 places, blocks at 32, 16 and 8
WEIGHTS = Path(__file__).parents[1] / "embedded" / "fd-zoo" / "model.safetensors"


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride, and a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class FeatureNet(nn.Module):
    """Equation (1)."""

    def __init__(self) -> None:
        super().__init__()
        stem, first, second, third = WIDTHS
        self.layers = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),  # [N, 24, 32, 32]
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            ResidualBlock(stem, first, 1),
            ResidualBlock(first, second, 2),  # [N, 80, 16, 16]
            ResidualBlock(second, third, 2),  # [N, 112, 8, 8]
            nn.Conv2d(third, FEATURES, 1, bias=False),
            nn.BatchNorm2d(FEATURES),
            nn.ReLU(),
        )

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 128"]:
        return self.layers(resize(images)).mean(dim=(2, 3))


def resize(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 64 64"]:
    """The images at the size that the network was trained on; those of that size as they are."""
    if images.shape[-2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)


def load_feature_net(path: Path = WEIGHTS) -> FeatureNet:
    """The shipped network in float32, for evaluation. ModelError for a file that cannot be used."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot read the feature network of FD-zoo: {error}") from error
    net = FeatureNet()
    try:
        net.load_state_dict({name: x.float() if x.is_floating_point() else x for name, x in state.items()})
    except RuntimeError as error:
        raise ModelError(f"{path}: not the weights of the feature network of FD-zoo: {error}") from error
    return net.eval().requires_grad_(False)
