from __future__ import annotations

from itertools import product

import pytest
from rich.console import Console

from benchmark_rows import make_cost, make_row
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.text import tables
from mezzotint.cli.text_tables import terminal_table

RECIPES = ("nearest", "q-diffusion", "eda-dm-official", "eda-dm")


def rows() -> list[Row]:
    cells = product(RECIPES, ("w8a8", "w4a4"), (1, 2))
    found = [make_row(recipe, bits, seed, fd=1.2 + seed) for recipe, bits, seed in cells]
    found = [row.model_copy(update={"cost": make_cost(beside=10**9)}) for row in found]
    note = "searches activation ranges batch by batch and averages them"
    changes = {"kind": "difference", "note": note, "fd_interval": (3.0, 4.0)}
    return [*found, make_row(bits="w4a4", variant="running-ranges", fd=3.5, **changes)]


def printed(width: int, number: int, given: list[Row]) -> list[str]:
    console = Console(width=width, legacy_windows=False)
    with console.capture() as capture:
        console.print(terminal_table(tables(given)[number], width, "table.md"))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_no_name_and_no_figure_is_broken(width: int, number: int) -> None:
    lines = printed(width, number, rows())
    assert max(map(len, lines)) <= width
    cells = {cell.strip() for line in lines for cell in line.split("│")}
    named = {0: ("2.70 ± 0.71", "eda-dm-official"), 1: ("4.00×", "every recipe"), 2: ("3.50", "running-ranges")}
    assert set(named[number]) <= cells
    assert not any("…" in line for line in lines)


def test_a_wide_terminal_has_everything_and_a_narrow_one_says_where() -> None:
    wide, narrow = ("\n".join(printed(width, 0, rows())) for width in (250, 80))
    assert "more in" not in wide
    assert "more in table.md: " in narrow
    assert all(title in wide for title in ("PSNR, pooled, dB ↑", "SSIM ↑", "FD to the training images ↓"))
    assert "SSIM ↑" not in narrow.partition("more in")[0]


def test_intervals_go_before_figures_do() -> None:
    given = [make_row(recipe, "w8a8", intervals={"ssim": (0.8, 0.95)}) for recipe in RECIPES]
    narrow, wide = ("\n".join(printed(width, 0, given)) for width in (70, 140))
    assert "[1.15, 1.35]" not in narrow
    assert "intervals" in narrow
    assert "1.25 [1.15, 1.35]" in wide


def test_rows_that_show_nothing_are_left_out() -> None:
    assert not any("float │" in line for line in printed(60, 0, rows()))
    assert any("float │" in line for line in printed(200, 0, rows()))
