"""Products of published UNets, how often each occurs in a step, and their operands: what `products.py` measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch


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
    kind: Literal["float", "codes", "geglu"] = "float"
    item: int = 2  # bytes of an element of a float result
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
    """All products of SD v1's UNet at 64x64 latents, as they are after `mezzotint.gpu.fusion`: with what is fused."""
    c = [  # without and with a residual, size, inputs, outputs
        (2, 5, 64, 320, 320), (1, 0, 64, 960, 320), (2, 0, 64, 640, 320), (1, 0, 64, 640, 640),
        (1, 0, 32, 320, 640), (1, 5, 32, 640, 640), (1, 0, 32, 1920, 640), (1, 0, 32, 1280, 640), (1, 0, 32, 960, 640),
        (1, 0, 32, 1280, 1280),
        (1, 0, 16, 640, 1280), (2, 5, 16, 1280, 1280), (2, 0, 16, 2560, 1280), (1, 0, 16, 1920, 1280),
        (4, 7, 8, 1280, 1280), (3, 0, 8, 2560, 1280),
    ]  # fmt: skip
    shapes = [Shape(f"3x3 {i}->{o} @{s}", n, batch, s, i, o) for n, _, s, i, o in c]
    shapes += [Shape(f"3x3 {i}->{o} + r @{s}", n, batch, s, i, o, residual=True) for _, n, s, i, o in c if n]
    for s, i in ((64, 320), (32, 640), (16, 1280)):
        shapes.append(Shape(f"3x3/2 {i}->{i} @{s}", 1, batch, s, i, i, stride=2))
    shapes += [Shape("3x3 4->320 @64", 1, batch, 64, 4, 320), Shape("3x3 320->4 @64", 1, batch, 64, 320, 4, item=4)]
    for n, s, a, b, o in (
        (1, 64, 640, 320, 320), (2, 64, 320, 320, 320), (1, 32, 1280, 640, 640), (1, 32, 640, 640, 640),
        (1, 32, 640, 320, 640), (2, 16, 1280, 1280, 1280), (1, 16, 1280, 640, 1280), (3, 8, 1280, 1280, 1280),
    ):  # fmt: skip
        shapes.append(Shape(f"1x1 {a}+{b}->{o} @{s}", n, batch, s, a + b, o, kernel=1, groups=(a, b)))
    for s, i in ((32, 320), (16, 640)):
        shapes.append(Shape(f"1x1 {i}->{2 * i} @{s}", 1, batch, s, i, 2 * i, kernel=1))
    for n, s, i in ((5, 64, 320), (5, 32, 640), (5, 16, 1280), (1, 8, 1280)):
        shapes.append(Shape(f"linear {i}->{i} @{s}", 2 * n, batch, s, i, i, kernel=1))
        shapes.append(Shape(f"linear {i}->{i} + r @{s}", 3 * n, batch, s, i, i, kernel=1, residual=True))
        shapes.append(Shape(f"linear {i}->{3 * i} @{s}", n, batch, s, i, 3 * i, kernel=1))
        shapes.append(Shape(f"geglu {i}->{8 * i} @{s}", n, batch, s, i, 8 * i, kernel=1, kind="geglu"))
        last = Shape(f"codes {4 * i}->{i} + r @{s}", n, batch, s, 4 * i, i, kernel=1, kind="codes", residual=True)
        shapes.append(last)
    for name, i, o, tokens in (
        ("keys and values", 768, 24960, 77), ("time", 320, 1280, 1), ("time", 1280, 1280, 1), ("time", 1280, 20160, 1),
    ):  # fmt: skip
        shapes.append(Shape(f"linear {i}->{o} {name}", 1, batch, 1, i, o, kernel=1, tokens=tokens))
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


def operands(shape: Shape, bits: int, generator: torch.Generator) -> dict[str, Any]:
    """Random tensors of one call of `shape`, in the form of the operators' arguments."""
    from mezzotint.kernels.triton.operands import pack_nibbles

    device, taps, groups = generator.device, shape.kernel**2, max(1, len(shape.groups))
    linear = shape.kernel == 1 and shape.stride == 1
    x_shape = (shape.rows,) if linear else (shape.batch, shape.size, shape.size)
    side = shape.size // shape.stride
    rows = (shape.rows,) if linear else (shape.batch, side, side)
    low = -128 if bits == 8 else -8
    like = {"generator": generator, "device": device}
    weight = torch.randint(low, -low, (shape.outputs, taps, shape.channels), dtype=torch.int8, **like)
    residual = torch.randn((*rows, shape.outputs), dtype=torch.bfloat16, **like) if shape.residual else None
    return {
        "x_q": torch.randint(-128, 128, (*x_shape, shape.channels), dtype=torch.int8, **like),
        "weight": weight if bits == 8 else pack_nibbles(weight, shape.groups),
        "multiplier": torch.rand((groups, shape.outputs), **like) * 1e-4,
        "correction": torch.randint(-9999, 9999, (groups, 16, shape.outputs), dtype=torch.int32, **like),
        "bias": torch.randn(shape.outputs, **like),
        "residual": residual,
        "channels": shape.channels,
        "bits": bits,
        "kernel": [shape.kernel] * 2,
        "stride": [shape.stride] * 2,
        "padding": [shape.kernel // 2] * 4,
        "groups": list(shape.groups),
    }


def described(shape: Shape, arguments: dict[str, Any]) -> Any:
    """The call, as `launch.run` takes it."""
    from mezzotint.kernels.triton import launch

    dtype = torch.int8 if shape.kind != "float" else torch.bfloat16 if shape.item == 2 else torch.float32
    return launch.describe(*arguments.values(), dtype, shape.kind, (0.05, 131, 255))


def problem_of(shape: Shape, bits: int) -> Any:
    """What `described` has as its problem, without tensors."""
    from mezzotint.kernels.triton.tuning import Problem

    linear, side = shape.kernel == 1 and shape.stride == 1, shape.size // shape.stride
    picture = (1, 1, shape.rows) if linear else (shape.batch, shape.size, shape.size)
    result = (1, shape.rows) if linear else (side, side)
    pad = shape.kernel // 2
    return Problem(
        *picture, shape.channels, shape.outputs, *result, shape.kernel, shape.stride, (pad, pad, pad, pad), bits,
        shape.groups, shape.kind, shape.item if shape.kind == "float" else 1, shape.residual,
    )  # fmt: skip
