"""Promises of `shared_reading` and of vectors that lie apart, collected by `test_triton.py` like `triton_cases`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_cases import DEVICE, generator

from mezzotint.errors import KernelError
from mezzotint.kernels.triton import exact, launch_norms, shared_reading

GRID = (0.05, 100, 255)
GRIDS = [(0.07, 3, 127), (0.031, 200, 255)]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).to(DEVICE)


def entry(second: int, channels: int = 20, rows: int = 16) -> tuple[list[object], tuple[Tensor, Tensor]]:
    """Arguments of `nhwc_entry_codes`, and what it promises."""
    every, grids = channels + second, GRIDS if second else GRIDS[:1]
    x, more = drawn(1, 2, rows, channels) * 3, drawn(2, 2, rows, second) if second else None
    norm = (x, more, None, drawn(3, every), drawn(4, every), None, None, 4, 1e-5, True)
    given = [*norm, *GRID, *map(list, zip(*grids, strict=True))]
    return given, shared_reading.entry_codes(*given)  # type: ignore[arg-type]


@pytest.mark.parametrize("second", [0, 12])
def test_entry_codes_are_both_steps(second: int) -> None:
    given, (normed, plain) = entry(second)
    got, got_plain = launch_norms.nhwc_entry_codes(*given)
    assert torch.equal(got_plain, plain)
    assert torch.equal(got, launch_norms.nhwc_group_norm_codes(*given[:13]))
    assert (got.int() - normed.int()).abs().max() <= 1
    x, more = given[0], given[1]
    assert torch.equal(plain[..., :20], exact.nhwc_codes(x, None, *GRIDS[0]))  # type: ignore[arg-type]
    if more is not None:
        assert torch.equal(plain[..., 20:], exact.nhwc_codes(more, None, *GRIDS[1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", launch_norms.norm_configs(2, 16, 32, 4), ids=str)
def test_entry_codes_do_not_depend_on_the_configuration(config: launch_norms.NormConfig) -> None:
    given, (_, plain) = entry(12)
    out, codes = torch.empty_like(plain), torch.full_like(plain, 77)
    grids = (GRIDS[0], GRIDS[1])
    launch_norms.group_norm(*given[:10], out=out, grid=GRID, config=config, entry=codes, entry_grids=grids)  # type: ignore[arg-type]
    assert torch.equal(codes, plain)


def test_entry_codes_take_a_grid_for_each_part() -> None:
    given, _ = entry(12)
    given[-1] = [255]
    with pytest.raises(KernelError, match="want 2 grids"):
        shared_reading.entry_codes(*given)  # type: ignore[arg-type]


def test_vectors_may_be_parts_of_wider_rows() -> None:
    wide, x = drawn(5, 2, 100), drawn(6, 2, 16, 24)
    parts = [wide[:, start : start + 24] for start in (3, 30, 60)]
    for config in launch_norms.norm_configs(2, 16, 24, 4):
        results = []
        for added, factor, shift in (parts, [part.contiguous() for part in parts]):
            out = torch.full_like(x, torch.nan)
            norm = (x, None, added, None, None, factor, shift, 4, 1e-5, False)
            launch_norms.group_norm(*norm, out=out, grid=GRID, config=config)
            results.append(out)
        assert torch.equal(*results)
        torch.testing.assert_close(results[0], exact.nhwc_group_norm(*norm), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("channels", [5, 16])
def test_upsampled_codes_are_each_pixel_again(channels: int) -> None:
    x = drawn(7, 2, 3, 5, channels)
    expected = shared_reading.upsampled_codes(x, 2, *GRID)
    assert torch.equal(launch_norms.nhwc_upsampled_codes(x, 2, *GRID), expected)
    codes = exact.nhwc_codes(x, None, *GRID)
    assert torch.equal(expected[:, 1::2, ::2], codes)
    assert torch.equal(expected[:, ::2, 1::2], codes)


def test_groups_may_lie_across_blocks_of_channels() -> None:
    x, second, weight = drawn(8, 2, 5, 200) + 20, drawn(9, 2, 5, 120), drawn(10, 320)
    norm = (x, second, None, weight, weight, None, None, 32, 1e-5, True)
    for config in [config for config in launch_norms.norm_configs(2, 5, 320, 32) if not config.whole]:
        out = torch.full((2, 5, 320), torch.nan, device=DEVICE)
        launch_norms.group_norm(*norm, out=out, grid=GRID, config=config)
        torch.testing.assert_close(out, exact.nhwc_group_norm(*norm), atol=2e-4, rtol=1e-4)
