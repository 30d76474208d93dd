"""The report in a real browser: no errors, no requests, nothing wider than the screen, and a slider that moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from browser import EXECUTABLE, MISSING, Browser, layout_faults
from mezzotint.evaluation.report import write_report
from mezzotint.evaluation.result import Evaluation

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason=MISSING)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def edge(page: Any) -> float:
    """Where the edge stands, percent from the left."""
    return float(page.evaluate("document.getElementById('sheet').style.getPropertyValue('--cut')").rstrip("%"))


def shown_share(page: Any) -> float:
    """Percent of the sheet's width that the picture on top leaves free at its left, as it is drawn."""
    clip = page.evaluate("getComputedStyle(document.getElementById('sheet-right')).clipPath")
    return float(clip.split("%")[0].rpartition(" ")[2])


def across_the_sheet(page: Any, shares: tuple[float, float]) -> list[tuple[float, float]]:
    """Two points in the window at these shares of the sheet's width."""
    page.evaluate("document.getElementById('sheet').scrollIntoView({block: 'center'})")
    box = page.evaluate("(({x, y, width, height}) => [x, y, width, height])(sheet.getBoundingClientRect())")
    return [(box[0] + share * box[2], box[1] + box[3] / 2) for share in shares]


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_report_in_a_browser(
    browser: Browser,
    tmp_path: Path,
    evaluation: Evaluation,
    image_pair: tuple[Tensor, Tensor],
    manifest: dict[str, Any],
    width: int,
) -> None:
    path = write_report(evaluation, *image_pair, manifest, tmp_path / "report.html")
    page = browser.open(path, width=width, touch=width < 500)
    assert edge(page) == 50
    start, end = across_the_sheet(page, (0.5, 0.2))
    page.swipe(start, end) if width < 500 else page.drag(start, end)
    assert edge(page) == pytest.approx(20, abs=1)
    assert shown_share(page) == edge(page)
    page.evaluate("document.querySelector('input[data-slides]').focus()")
    page.press("ArrowRight")
    assert edge(page) == pytest.approx(21, abs=1)
    page.press("End")
    assert edge(page) == 100
    assert layout_faults(page) == []
    charts = "[...document.querySelectorAll('.chart svg')].filter((e) => e.getBoundingClientRect().width > 0).length"
    assert page.evaluate(charts) == 3
    assert page.complaints == []
    assert page.requests == [path.as_uri()]


def test_the_browser_tells_of_complaints_and_requests(browser: Browser, tmp_path: Path) -> None:
    page_of_faults = tmp_path / "faults.html"
    page_of_faults.write_text(
        "<!doctype html><img src='missing.png'><p style='width: 3000px'>wide</p>"
        "<script>console.error('one'); throw new Error('two')</script>"
    )
    page = browser.open(page_of_faults)
    said = " ".join(page.complaints)
    assert all(word in said for word in ("one", "two"))
    assert any(url.endswith("missing.png") for url in page.requests)
    assert len(layout_faults(page)) == 2
