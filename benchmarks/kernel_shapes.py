"""Products of published UNets, with how often each occurs in one step: what `kernels.py` measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Shape:
    """A product of a picture [batch, size, size, channels], or of rows [batch * size * size, channels] (linear)."""

    name: str
    count: int  # in one step of the UNet
    batch: int
    size: int
    channels: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    kind: Literal["float", "geglu"] = "float"
    residual: bool = False
    groups: tuple[int, ...] = ()
    tokens: int = 0  # of a linear product of something else than the picture

    @property
    def rows(self) -> int:
        """Positions of the result."""
        return self.batch * (self.tokens or (self.size // self.stride) ** 2)

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.rows * self.outputs * self.channels * self.kernel**2


def stable_diffusion(batch: int) -> list[Shape]:
    """SD v1's UNet at 64x64 latents: 3x3 convolutions, then shortcuts, then the linear layers of its transformers."""
    c = [
        (7, 64, 320, 320), (1, 64, 960, 320), (2, 64, 640, 320), (1, 64, 640, 640),
        (1, 32, 320, 640), (6, 32, 640, 640), (1, 32, 1920, 640), (1, 32, 1280, 640), (1, 32, 960, 640),
        (1, 32, 1280, 1280),
        (1, 16, 640, 1280), (7, 16, 1280, 1280), (2, 16, 2560, 1280), (1, 16, 1920, 1280),
        (11, 8, 1280, 1280), (3, 8, 2560, 1280),
    ]  # fmt: skip
    shapes = [Shape(f"3x3 {i}->{o} @{s}", n, batch, s, i, o, residual=n > 2) for n, s, i, o in c]
    for s, i in ((64, 320), (32, 640), (16, 1280)):
        shapes.append(Shape(f"3x3/2 {i}->{i} @{s}", 1, batch, s, i, i, stride=2))
    shapes += [Shape("3x3 4->320 @64", 1, batch, 64, 4, 320), Shape("3x3 320->4 @64", 1, batch, 64, 320, 4)]
    for n, s, a, b, o in (
        (1, 64, 640, 320, 320), (2, 64, 320, 320, 320), (1, 32, 1280, 640, 640), (1, 32, 640, 640, 640),
        (1, 32, 640, 320, 640), (2, 16, 1280, 1280, 1280), (1, 16, 1280, 640, 1280), (3, 8, 1280, 1280, 1280),
    ):  # fmt: skip
        shapes.append(Shape(f"1x1 {a}+{b}->{o} @{s}", n, batch, s, a + b, o, kernel=1, groups=(a, b)))
    for n, s, i in ((5, 64, 320), (5, 32, 640), (5, 16, 1280), (1, 8, 1280)):
        shapes.append(Shape(f"linear {i}->{i} @{s}", 2 * n, batch, s, i, i, kernel=1))
        shapes.append(Shape(f"linear {i}->{i} + r @{s}", 3 * n, batch, s, i, i, kernel=1, residual=True))
        shapes.append(Shape(f"linear {i}->{3 * i} @{s}", n, batch, s, i, 3 * i, kernel=1))
        shapes.append(Shape(f"geglu {i}->{8 * i} @{s}", n, batch, s, i, 8 * i, kernel=1, kind="geglu"))
        shapes.append(Shape(f"linear {4 * i}->{i} + r @{s}", n, batch, s, 4 * i, i, kernel=1, residual=True))
        shapes.append(Shape(f"linear 768->{2 * i} tokens", n, batch, s, 768, 2 * i, kernel=1, tokens=77))
    return shapes


def cifar(batch: int) -> list[Shape]:
    """The CIFAR-10 UNet of DDIM: 3x3 convolutions only, which are nearly all of it."""
    c = [
        (5, 32, 128, 128), (2, 32, 256, 128), (1, 32, 384, 128), (1, 32, 256, 256),
        (1, 16, 128, 256), (6, 16, 256, 256), (2, 16, 512, 256), (1, 16, 384, 256),
        (8, 8, 256, 256), (3, 8, 512, 256), (11, 4, 256, 256), (3, 4, 512, 256),
    ]  # fmt: skip
    return [Shape(f"3x3 {i}->{o} @{s}", n, batch, s, i, o) for n, s, i, o in c]


def square() -> list[Shape]:
    """The usual large matrix product, for the rate the chip reaches."""
    return [Shape("linear 8192^3", 0, 1, 1, 8192, 8192, kernel=1, tokens=8192)]


NETWORKS = {
    "sd16": lambda: stable_diffusion(16),
    "sd2": lambda: stable_diffusion(2),
    "cifar256": lambda: cifar(256),
    "square": square,
}
