"""Promises of the Triton kernels, collected by `test_triton.py`: in Triton's interpreter on a CPU, or on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime import interpreter
from triton.runtime.errors import OutOfResources

from mezzotint.errors import KernelError
from mezzotint.gpu.compiling import compile_kernels
from mezzotint.kernels.contract import Geometry, Weighted
from mezzotint.kernels.triton import (
    Operand,
    choice,
    conv2d_operand,
    exact,
    launch,
    launch_norms,
    linear_operand,
    tables,
)
from mezzotint.kernels.triton.check import Check
from mezzotint.kernels.triton.operands import pack_nibbles, unpack_nibbles
from mezzotint.kernels.triton.tuning import Config, Problem, candidates, refuses, shared_bytes

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
DEVICE = "cpu" if INTERPRETED else "cuda"
GRID = (0.37, 117, 255)
_patch = interpreter._patch_lang_tensor


def _patch_with_numpy_24(tensor: Any, scope: Any) -> None:
    """Triton 3.6 turns arrays of one element into numbers by int(), which numpy refuses from 2.4 on."""
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_with_numpy_24

KERNELS = [
    Config("tiled", 32, 32, 32, 32, 4, 2),
    Config("tiled", 32, 16, 32, 0, 4, 2, splits=2, persistent=True),
    Config("tiled", 32, 32, 32, 32, 4, 2, turned=True),
    Config("tiled", 16, 32, 32, 0, 4, 2, splits=2, turned=True),
    Config("gathered", 32, 16, 32, 0, 4, 2),
    Config("gathered", 16, 32, 32, 0, 4, 2, splits=2),
]
ON_GPU = [
    Config("tiled", 128, 128, 64, 0, 8, 3, persistent=True),
    Config("tiled", 128, 256, 64, 64, 8, 3, turned=True),
    Config("tiled", 16, 128, 64, 0, 4, 4, splits=2, turned=True),
    Config("gathered", 64, 64, 64, 0, 4, 3, splits=2),
]
CONFIGS = KERNELS if INTERPRETED else ON_GPU
SHAPES = [  # batch, height, width, channels, outputs, kernel, stride, bits
    (2, 4, 4, 32, 24, 3, 1, 8),
    (1, 6, 8, 48, 16, 3, 2, 4),
    (3, 3, 3, 16, 40, 3, 1, 4),
    (1, 7, 9, 5, 3, 3, 2, 8),
    (1, 1, 37, 64, 48, 1, 1, 8),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weighted(outputs: int, shape: tuple[int, ...], bits: int, zero_point: int, **more: Any) -> Weighted:
    g, size = generator(outputs), 2 ** (bits - 1)
    weight = torch.randint(-size, size, (outputs, *shape), generator=g).to(DEVICE, torch.int8)
    multiplier, bias = torch.rand(outputs, generator=g) * 0.01, torch.randn(outputs, generator=g)
    return Weighted(weight, multiplier.to(DEVICE), bias.to(DEVICE), zero_point, **more)


def convolution(shape: tuple[int, ...]) -> tuple[torch.Tensor, Operand]:
    b, h, w, c, o, k, s, bits = shape
    part = weighted(o, (c, k, k), bits, 37, geometry=Geometry((s, s), (k // 2, k // 2)))
    x_q = torch.randint(-128, 128, (b, h, w, c), generator=generator(c)).to(DEVICE, torch.int8)
    return x_q, conv2d_operand([part], bits=bits)


def call(
    x_q: torch.Tensor,
    operand: Operand,
    dtype: torch.dtype = torch.float32,
    kind: str = "float",
    residual: torch.Tensor | None = None,
) -> tuple[launch.Product, torch.Tensor]:
    """The call with a poisoned result, and what it must become."""
    constants = (operand.weight, operand.multiplier, operand.correction, operand.bias, residual)
    window = (operand.channels, operand.bits, *map(list, (operand.kernel, operand.stride, operand.padding)))
    described = launch.describe(x_q, *constants, *window, list(operand.groups), dtype, kind, GRID)
    described.out.fill_(77)
    if kind == "float":
        return described, exact.int8_product(x_q, *constants, *window, list(operand.groups), dtype)
    expected = exact.int8_product_codes(x_q, *constants, *window, list(operand.groups), kind == "geglu", *GRID)
    return described, expected


def operand_weight(operand: Operand) -> torch.Tensor:
    return unpack_nibbles(operand.weight, operand.channels, operand.groups) if operand.bits == 4 else operand.weight


def refused(config: Config, product: launch.Product) -> bool:
    slow = config.kernel == "tiled" and product.problem.bits == 4 and not config.turned and not INTERPRETED
    return slow or refuses(product.problem, config) is not None


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accumulators_are_exact(shape: tuple[int, ...], config: Config) -> None:
    x_q, operand = convolution(shape)
    if shape[0] == 3:  # the largest sums there are
        x_q.fill_(-128)
        operand = replace(operand, weight=pack_nibbles(torch.full_like(operand_weight(operand), -8)))
    product, expected = call(x_q, operand, torch.int32)
    if refused(config, product):
        pytest.skip("not this kernel's")
    launch.run(product, config)
    assert torch.equal(product.out, expected)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("kind", ["float", "codes"])
def test_epilogues_are_rounded_like_the_reference(config: Config, kind: str) -> None:
    x_q, operand = convolution(SHAPES[0])
    residual = torch.randn(2, 4, 4, 24, generator=generator(3)).to(DEVICE, torch.float16)
    for more in (None, residual):
        product, expected = call(x_q, operand, torch.float32 if kind == "float" else torch.int8, kind, more)
        if kind == "codes" and config.kernel != "gathered":  # 24 codes are no multiple of 16 bytes
            continue
        launch.run(product, config)
        assert torch.equal(product.out, expected)


@pytest.mark.parametrize("picture", [(2, 8, 8), (4, 5, 4), (1, 9, 24), (1, 2, 256)], ids=str)
@pytest.mark.parametrize("splits", [1, 2])
def test_a_turned_tile_leaves_in_pieces(picture: tuple[int, int, int], splits: int) -> None:
    """128 positions, 64 at once: halves of runs of rows, of images, of rows, of columns."""
    x_q, operand = convolution((*picture, 32, 16 if INTERPRETED else 64, 3, 1, 4))
    product, expected = call(x_q, operand)
    launch.run(product, Config("tiled", 128, product.problem.outputs, 32, 0, 4, 2, splits=splits, turned=True))
    assert torch.equal(product.out, expected)


@pytest.mark.parametrize("config", CONFIGS[::2], ids=lambda c: c.name)
def test_geglu_differs_by_the_error_function_only(config: Config) -> None:
    x_q = torch.randint(-128, 128, (37, 64), generator=generator(1)).to(DEVICE, torch.int8)
    operand = linear_operand([weighted(64, (64,), 8, 99)], geglu=True)
    product, expected = call(x_q, operand, torch.int8, "geglu")
    launch.run(product, config)
    difference = (product.out.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3


GROUPED = [replace(c, splits=1) for c in CONFIGS if not c.bn2]


@pytest.mark.parametrize("config", GROUPED, ids=lambda c: c.name)
@pytest.mark.parametrize(
    ("bits", "sizes"),
    [(8, (64, 32)), pytest.param(4, (64, 32), id="packed 64+32"), pytest.param(4, (80, 48), id="packed 80+48")],
)
def test_groups_of_a_split_shortcut_are_added_in_order(bits: int, sizes: tuple[int, int], config: Config) -> None:
    """Also where the first group ends in a run of 32 channels whose 4-bit weights lie in shared bytes."""
    parts = [weighted(32, (size, 1, 1), bits, zero) for size, zero in zip(sizes, (3, 200), strict=True)]
    parts = [Weighted(p.weight_q, p.multiplier, None, p.x_zero_point) for p in parts]
    operand = conv2d_operand(parts, bias=torch.linspace(-1, 1, 32, device=DEVICE), bits=bits)
    x_q = torch.randint(-128, 128, (2, 4, 4, sum(sizes)), generator=generator(5)).to(DEVICE, torch.int8)
    product, expected = call(x_q, operand)
    if refused(config, product):
        pytest.skip("not this kernel's")
    launch.run(product, config)
    assert torch.equal(product.out, expected)


def norm_case(batch: int, rows: int, channels: int, second: int, affine: bool) -> tuple[Any, ...]:
    g, every = generator(rows), channels + second
    draw = lambda *shape: torch.randn(shape, generator=g).to(DEVICE)  # noqa: E731
    x, more = draw(batch, rows, channels) * 3 + 50, draw(batch, rows, second) if second else None
    scales = (draw(batch, every), draw(batch, every)) if affine else (None, None)
    return (x, more, draw(batch, every), draw(every), draw(every), *scales, 4, 1e-5, affine)


@pytest.mark.parametrize("case", [(2, 16, 20, 0, True), (1, 9, 16, 24, False)], ids=str)
def test_group_norm(case: tuple[Any, ...]) -> None:
    norm = norm_case(*case)
    expected, codes = exact.nhwc_group_norm(*norm), exact.nhwc_group_norm_codes(*norm, 0.05, 100, 255)
    configs = launch_norms.norm_configs(case[0], case[1], case[2] + case[3], 4)
    assert {config.whole for config in configs} == {True, False}
    for config in configs:
        y = torch.full_like(expected, torch.nan)
        y_q = torch.full_like(codes, 77)
        launch_norms.group_norm(*norm, out=y, grid=(1.0, 0, 255), config=config)
        launch_norms.group_norm(*norm, out=y_q, grid=(0.05, 100, 255), config=config)
        torch.testing.assert_close(y, expected, atol=2e-4, rtol=1e-4)  # float32 about a mean of 50
        assert (y_q.int() - codes.int()).abs().max() <= 1
        assert (y_q != codes).float().mean() < 0.01


def test_codes_are_exact_at_ties() -> None:
    step = torch.tensor(0.1)
    x = torch.cat([(torch.arange(-300, 300) + 0.5) * step, torch.tensor([1e9, -1e9, 0.0, -0.0])]).view(4, 151)
    for scale in (0.1, 0.0371, 3.0):
        got = launch_norms.nhwc_codes(x.to(DEVICE), x.to(DEVICE), scale, 30, 255)
        assert torch.equal(got.cpu(), exact.nhwc_codes(x, x, scale, 30, 255))


def test_layer_norm_and_geglu() -> None:
    x, w = torch.randn(5, 48, generator=generator(2)).to(DEVICE), torch.linspace(0.5, 2, 48, device=DEVICE)
    pairs = [
        (launch_norms.nhwc_layer_norm_codes(x, w, w, 1e-5, *GRID), exact.nhwc_layer_norm_codes(x, w, w, 1e-5, *GRID)),
        (launch_norms.nhwc_geglu_codes(x, 0.01, 30, 255), exact.nhwc_geglu_codes(x, 0.01, 30, 255)),
    ]
    for got, expected in pairs:
        assert (got.int() - expected.int()).abs().max() <= 1
        assert (got != expected).float().mean() < 0.02


@pytest.mark.parametrize(
    "config", [Config("tiled", 16, 32, 64, 0, 4, 2, turned=True), Config("gathered", 16, 32, 64, 0, 4, 2)]
)
def test_packed_weights_are_filled_up_with_zeros_that_count(config: Config) -> None:
    """With stride 2 a block of channels reaches into the next pixel, and only zeros of the weight hide that."""
    x_q, operand = convolution((1, 6, 6, 80, 96, 3, 2, 4))
    x_q.fill_(-128)
    weight = pack_nibbles(torch.full((96, 9, 80), -8, dtype=torch.int8, device=DEVICE))
    if not INTERPRETED:
        config = replace(config, bm=64, bn=64)
    product, expected = call(x_q, replace(operand, weight=weight), torch.int32)
    launch.run(product, config)
    assert torch.equal(product.out, expected)


def problems() -> list[Problem]:
    """Linear, with everything an epilogue can do, and convolutions, of Stable Diffusion's sizes."""
    linear = Problem(1, 1, 16384, 640, 640, 1, 16384, 1, 1, (0, 0, 0, 0), 8, (), "float", 2, True)
    picture = Problem(16, 64, 64, 320, 320, 64, 64, 3, 1, (1, 1, 1, 1), 8, (), "float", 2, True)
    small = replace(picture, height=8, width=8, out_height=8, out_width=8, channels=1280, outputs=1280)
    geglu = replace(linear, kind="geglu", item_bytes=1, residual=False, outputs=5120)
    return [linear, geglu, replace(linear, bits=4), picture, small, replace(small, bits=4), replace(picture, stride=2)]


@pytest.mark.parametrize("shared", [232448, 166912, 101376])  # of sm_90, sm_80, sm_89
def test_candidates_fit_into_shared_memory(shared: int) -> None:
    for problem in problems():
        for tiled in (True, False):
            found = candidates(problem, tiled=tiled, shared=shared)
            assert found
            assert all(shared_bytes(problem, config) <= shared for config in found)


class Tries:
    """An attempt that notes what was tried; some configurations ask for too much."""

    def __init__(self, refuses: int = 0) -> None:
        self.tried: list[Config] = []
        self.refuses = refuses

    def __call__(self, config: Config) -> None:
        self.tried.append(config)
        if len(self.tried) <= self.refuses:
            raise OutOfResources(245824, 232448, "shared memory")


def right(config: Config) -> None:
    """Nothing is wrong with any."""


def test_what_does_not_fit_is_passed_over_and_remembered() -> None:
    problem, place = replace(problems()[0], width=16383, out_width=16383), torch.device("cpu")
    attempt = Tries(refuses=2)
    assert choice.launch_best(problem, place, attempt, right) == attempt.tried[2]
    again = Tries()
    assert choice.launch_best(problem, place, again, right) == attempt.tried[2]
    assert len(again.tried) == 1
    with pytest.raises(KernelError, match="no configuration fits cpu; tried tiled"):
        choice.launch_best(replace(problem, width=5, out_width=5), place, Tries(refuses=10**6), right)


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Problem]:
    """A problem that no table knows, on a device that can measure."""
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "_can_measure", lambda place: True)
    monkeypatch.setattr(choice, "_CHOSEN", {})
    tables.cached.cache_clear()
    yield replace(problems()[0], width=777, out_width=777)
    tables.cached.cache_clear()


def test_an_unknown_shape_is_tuned_once_and_kept(tuned: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, place = tuned, torch.device("cpu")
    order = candidates(problem, 4)
    measured: list[Config] = []

    def bench(call: Any, **options: Any) -> float:
        call()
        measured.append(order[len(measured)])
        return -float(len(measured))  # the last is the fastest

    fastest = choice.fastest
    monkeypatch.setattr(choice, "fastest", lambda configs, attempt: fastest(configs, attempt, bench))
    told: list[str] = []
    with choice.telling_of_tuning(lambda: told.append("tuned")):
        best = choice.launch_best(problem, place, Tries(), right)
    assert measured == order[: choice.TRIED]
    assert best == measured[-1]
    monkeypatch.setattr(choice, "_CHOSEN", {})
    tables.cached.cache_clear()
    with choice.telling_of_tuning(lambda: told.append("tuned")):
        assert choice.launch_best(problem, place, Tries(), right) == best
    assert told == ["tuned"]
    assert len(measured) == choice.TRIED
    assert not compile_kernels(lambda: choice.launch_best(problem, place, Tries(), right), threads=1)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"a": {"kernel": "gone", "bm": 1, "bn": 1, "bk": 1}, "b": 3, "c": {"bm": 1}}']
)
def test_a_cache_of_another_version_is_tuned_anew(tuned: Problem, text: str) -> None:
    path = tables.cache_path("cpu")
    path.write_text(text)
    assert tables.cached("cpu") == {}
    tables.remember("cpu", tuned.key, Config("tiled", 128, 64, 64))
    tables.cached.cache_clear()
    assert tables.cached("cpu") == {tuned.key: Config("tiled", 128, 64, 64)}


def test_what_computes_something_else_is_not_timed(
    tuned: Problem, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    order, timed = candidates(tuned, 4), []

    def first(configs: list[Config], attempt: Any) -> Config:
        timed.extend(configs)
        return configs[0]

    monkeypatch.setattr(choice, "fastest", first)
    wrong = order[: choice.TRIED + 1]
    best = choice.launch_best(tuned, torch.device("cpu"), Tries(), lambda c: "all differ" if c in wrong else None)
    assert timed == [best] == [order[choice.TRIED + 1]]
    assert len(caplog.records) == choice.TRIED + 1
    assert f"{tuned.key}: {order[0].name} is not used on cpu: all differ" in caplog.text
    other = replace(tuned, width=778, out_width=778)
    with pytest.raises(KernelError, match="no configuration computes it on cpu, the last: all differ"):
        choice.launch_best(other, torch.device("cpu"), Tries(), lambda config: "all differ")


def test_what_only_compiles_chooses_nothing(tuned: Problem) -> None:
    """All that tuning will try is asked for; what did not run was not compared, timed or kept."""
    attempt = Tries()
    wrong = lambda config: pytest.fail("nothing ran")  # noqa: E731
    unknown = compile_kernels(lambda: choice.launch_best(tuned, torch.device("cpu"), attempt, wrong), threads=1)
    assert unknown == {tuned.key}
    assert attempt.tried == candidates(tuned, 4)[: choice.TRIED]
    assert not choice._CHOSEN
    assert not tables.cached("cpu")


@pytest.mark.parametrize("kind", ["float", "codes", "geglu"])
@pytest.mark.parametrize("window", [True, False])
def test_a_result_is_checked_at_its_ends_and_against_another(window: bool, kind: str) -> None:
    if window and kind == "geglu":
        pytest.skip("GEGLU follows linear layers")
    x_q, operand = convolution((3, 4, 4, 16, 16, 3, 1, 8))
    if not window:
        x_q = torch.randint(-128, 128, (3, 90, 32), generator=generator(2)).to(DEVICE, torch.int8)
        operand = linear_operand([weighted(16, (32,), 8, 9)], geglu=kind == "geglu")
    product, expected = call(x_q, operand, torch.float32 if kind == "float" else torch.int8, kind)
    written = {16: expected.clone(), 32: expected.clone(), 64: expected.clone(), 128: expected.clone()}
    written[16][-1, -1] = 3  # nothing that compares with it yet
    written[64][1, 2] = 3  # in the middle, where exact arithmetic does not look

    def write(call: launch.Product, config: Config) -> None:
        call.out.copy_(written[config.bm])

    check = Check(product, write)
    outcomes = [check(Config("tiled", bm, 64, 64)) for bm in written]
    assert "exact arithmetic" in str(outcomes[0])
    assert "of another" in str(outcomes[2])
    assert outcomes[1] is outcomes[3] is None
    assert "exact arithmetic" in str(Check(product, lambda call, config: None)(Config("tiled", 16, 64, 64)))
