"""The Inception-v3 network of published FIDs, with the three outputs that metrics are made of.

    pool3    float32 [N, 2048]   mean over places of the last block               FID, KID, precision and recall
    spatial  float32 [N, 2023]   first 7 channels of mixed_6/conv at 17 x 17      sFID
    logits   float32 [N, 1008]   pool3 @ fc.weight.T, without the bias            Inception score

It is the TensorFlow graph of 2015-12-05, not torchvision's network: average pools leave out the border, the last block
pools by maximum, there are 1008 classes. Names of layers are torchvision's, as in the file of weights that
torch-fidelity and pytorch-fid publish. `mixed_6` of the graph is torchvision's Mixed_6d (mixed_4 ... mixed_7 are 6b
... 6e); `spatial` is flattened as the graph does it, channels last, so that statistics interchange with those of
guided-diffusion's evaluator (Dhariwal & Nichol 2021; sFID: Nash et al. 2021, arXiv 2103.03841).

Three ways to the 299 x 299 pixels of its input; scores differ by some percent between them, so each is named:

    tf1           TensorFlow 1's bilinear sampling inside the graph, corners aligned at the top left: torch-fidelity,
                  guided-diffusion, the original FID
    pytorch-fid   bilinear sampling at pixel centres, no antialiasing: pytorch-fid
    clean         bicubic with antialiasing, clean-fid (Parmar et al. 2022)

Why not torch-fidelity's class: its package imports torchvision, whose registry wheels do not load beside a CPU-only
torch; it has no `spatial` output; and it knows the first of the three resizings alone. The tests compare with it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.errors import WeightsError
from mezzotint.evaluation.weights import find_weights

Resize = Literal["tf1", "pytorch-fid", "clean"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
SIDE = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7
SPATIAL_BLOCK = "Mixed_6d"

Layer = tuple[str, int, int | tuple[int, int]]  # suffix of its name, channels, kernel
Branch = Sequence[Layer | tuple[Layer, Layer]]  # a pair of layers reads one input, outputs are put side by side


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU. With stride 2, or `valid`, without a border; else the size stays."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, valid: bool = False
    ) -> None:
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if stride == 2 or valid else (rows // 2, columns // 2)
        self.conv = nn.Conv2d(inputs, outputs, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Branches side by side, the pooled one last.

    Args:
        branches: name -> its layers; the last layer of a branch has the stride.
        pool: how the last branch pools.
        pooled: channels that a 1x1 convolution makes of the pooled input; None leaves it as it is.
    """

    def __init__(
        self,
        inputs: int,
        branches: dict[str, Branch],
        pool: Literal["mean", "max"],
        pooled: int | None = None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.paths = [[_names(name, layer) for layer in branch] for name, branch in branches.items()]
        self.pool, self.stride = pool, stride
        self.outputs = inputs if pooled is None else pooled
        for name, branch in branches.items():
            width = inputs
            for index, layer in enumerate(branch):
                last = index == len(branch) - 1
                parts = layer if isinstance(layer[0], tuple) else (layer,)
                for suffix, channels, kernel in parts:
                    self.add_module(name + suffix, Convolution(width, channels, kernel, stride if last else 1))
                width = sum(part[1] for part in parts)
            self.outputs += width
        self.branch_pool = None if pooled is None else Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            found.append(y)
        y = self._pooled(x)
        return torch.cat([*found, y if self.branch_pool is None else self.branch_pool(y)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        padding = 0 if self.stride == 2 else 1
        if self.pool == "max":
            return F.max_pool2d(x, 3, self.stride, padding)
        return F.avg_pool2d(x, 3, self.stride, padding, count_include_pad=False)


def _names(branch: str, layer: Layer | tuple[Layer, Layer]) -> list[str]:
    parts = layer if isinstance(layer[0], tuple) else (layer,)
    return [branch + part[0] for part in parts]


def _block_35(inputs: int, pooled: int) -> Block:
    double: Branch = (("_1", 64, 1), ("_2", 96, 3), ("_3", 96, 3))
    branches: dict[str, Branch] = {
        "branch1x1": (("", 64, 1),),
        "branch5x5": (("_1", 48, 1), ("_2", 64, 5)),
        "branch3x3dbl": double,
    }
    return Block(inputs, branches, "mean", pooled)


def _block_17(inputs: int, width: int) -> Block:
    row, column = (1, 7), (7, 1)
    branches: dict[str, Branch] = {
        "branch1x1": (("", 192, 1),),
        "branch7x7": (("_1", width, 1), ("_2", width, row), ("_3", 192, column)),
        "branch7x7dbl": (
            ("_1", width, 1),
            ("_2", width, column),
            ("_3", width, row),
            ("_4", width, column),
            ("_5", 192, row),
        ),
    }
    return Block(inputs, branches, "mean", 192)


def _block_8(inputs: int, pool: Literal["mean", "max"]) -> Block:
    row, column = (1, 3), (3, 1)
    branches: dict[str, Branch] = {
        "branch1x1": (("", 320, 1),),
        "branch3x3": (("_1", 384, 1), (("_2a", 384, row), ("_2b", 384, column))),
        "branch3x3dbl": (("_1", 448, 1), ("_2", 384, 3), (("_3a", 384, row), ("_3b", 384, column))),
    }
    return Block(inputs, branches, pool, 192)


def _to_17(inputs: int) -> Block:
    double: Branch = (("_1", 64, 1), ("_2", 96, 3), ("_3", 96, 3))
    return Block(inputs, {"branch3x3": (("", 384, 3),), "branch3x3dbl": double}, "max", stride=2)


def _to_8(inputs: int) -> Block:
    branches: dict[str, Branch] = {
        "branch3x3": (("_1", 192, 1), ("_2", 320, 3)),
        "branch7x7x3": (("_1", 192, 1), ("_2", 192, (1, 7)), ("_3", 192, (7, 1)), ("_4", 192, 3)),
    }
    return Block(inputs, branches, "max", stride=2)


class Inception(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] of any size -> {"pool3", "spatial", "logits"}."""

    def __init__(self, resize: Resize = "tf1") -> None:
        super().__init__()
        self.resize: Resize = resize
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)  # [N, 32, 149, 149]
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, valid=True)  # [N, 32, 147, 147]
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)  # [N, 80, 73, 73]
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, valid=True)  # [N, 192, 71, 71]
        self.Mixed_5b = _block_35(192, 32)  # [N, 256, 35, 35]
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = _to_17(288)  # [N, 768, 17, 17]
        self.Mixed_6b = _block_17(768, 128)
        self.Mixed_6c = _block_17(768, 160)
        self.Mixed_6d = _block_17(768, 160)
        self.Mixed_6e = _block_17(768, 192)
        self.Mixed_7a = _to_8(768)  # [N, 1280, 8, 8]
        self.Mixed_7b = _block_8(1280, "mean")
        self.Mixed_7c = _block_8(2048, "max")
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        x = to_299(images, self.resize)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)  # [N, 192, 35, 35]
        for name, block in self.named_children():
            if not name.startswith("Mixed"):
                continue
            if name == SPATIAL_BLOCK:
                spatial = block.get_submodule("branch1x1")(x)[:, :SPATIAL_CHANNELS]
            x = block(x)
        pool3 = x.mean(dim=(2, 3))
        return {
            "pool3": pool3,
            "spatial": spatial.permute(0, 2, 3, 1).flatten(1),
            "logits": F.linear(pool3, self.fc.weight),
        }


def to_299(images: Float[Tensor, "n 3 h w"], resize: Resize) -> Float[Tensor, "n 3 299 299"]:
    """The network's input from images in [-1, 1], resized as `resize` says and scaled as goes with it."""
    pixels = (images.float() + 1) * 127.5
    if resize == "tf1":
        rows, columns = (_tf1_weights(length, images.device) for length in images.shape[-2:])
        return (rows @ pixels @ columns.T - 128) / 128
    size = (SIDE, SIDE)
    if resize == "pytorch-fid":
        return F.interpolate(pixels, size, mode="bilinear", align_corners=False) / 127.5 - 1
    return (F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255) - 128) / 128


def _tf1_weights(length: int, device: torch.device) -> Float[Tensor, "299 length"]:
    """Row i takes pixels floor(p) and floor(p) + 1 at p = i length / 299, by their distance from p."""
    place = torch.arange(SIDE, device=device, dtype=torch.float32) * (length / SIDE)
    low = place.floor().long().clamp(max=length - 1)
    share = (place - low)[:, None]
    identity = torch.eye(length, device=device)
    return identity[low] * (1 - share) + identity[(low + 1).clamp(max=length - 1)] * share


def load_inception(resize: Resize = "tf1", path: Path | None = None) -> Inception:
    """The network with the published weights (`weights.find_weights`, or the file `path`), for evaluation.

    Raises:
        WeightsError: the weights are nowhere, or are no weights of this network.
    """
    path = find_weights("inception") if path is None else path
    network = Inception(resize)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: not the weights of the Inception network of FID: {error}") from error
    return network.eval().requires_grad_(False)
