from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from benchmark_rows import make_row
from browser import EXECUTABLE, MISSING, Browser, layout_faults
from mezzotint.benchmark.render import render
from mezzotint.benchmark.row import Row
from mezzotint.benchmark.rows import RowFile
from mezzotint.errors import ConfigError, OutputError


@pytest.fixture
def page(table: Path) -> str:
    render(table)
    return (table / "report.html").read_text(encoding="utf-8")


def test_files_of_a_table(table: Path) -> None:
    assert [file.name for file in render(table)] == ["table.md", "table.tex", "report.html"]
    assert all((table / name).read_text(encoding="utf-8") for name in ("table.md", "table.tex", "report.html"))
    with pytest.raises(ConfigError, match="holds no finished cell"):
        render(table / "elsewhere")


def test_the_page_says_what_the_rows_say(page: str) -> None:
    assert "eda\u2011dm is closest to the float model in 2 of 2 bit settings." in page
    for text in (
        "1.30 ± 0.10",
        "2.50 <small>(+1.30 ± 0.14)</small>",
        "has symmetric ranges",
        "emoji: cost",
        "16.00×",
        "TEST GPU",
        "ab" * 32,
        "conv_out",
    ):
        assert text in page
    assert 'data value="12.5"' in page  # the worst layer
    assert "learned rounding kept in 1 of 2" in page
    assert "t = 800: 11 samples" in page


def test_the_pictures_are_those_of_the_rows(page: str, table: Path) -> None:
    sources = re.findall(r'<img hidden id="sheet-1-\d+" src="data:image/png;base64,([^"]+)"', page)
    recipes = [row for row in RowFile(table).read() if row.kind == "recipe" and row.seed == 1]
    recipes.sort(key=lambda row: (row.bits == "w4a8", row.recipe == "eda-dm"))  # ours last
    names = ["images/float.png", *(row.sheets.quantized_images for row in recipes if row.sheets)]
    assert [base64.b64decode(source) for source in sources] == [(table / name).read_bytes() for name in names]
    plate = re.search(r'class="pixelated" src="data:image/png;base64,([^"]+)" alt="Images of eda-dm', page)
    assert plate is not None
    assert Image.open(io.BytesIO(base64.b64decode(plate[1]))).size == (16, 16)  # two of two rows, of 8 pixels each


def test_rows_without_their_folder_of_pictures_make_a_page_that_says_so(table: Path) -> None:
    """A table may be kept without its pictures; one picture that is missing among others is an error."""
    shutil.rmtree(table / "images")
    render(table)
    page = (table / "report.html").read_text(encoding="utf-8")
    assert "The pictures are not here" in page
    assert "data:image" not in page


def test_the_slider_begins_with_the_images_of_the_row_at_the_top(table: Path) -> None:
    with Image.open(table / "images" / "0.png") as picture:
        picture.save(table / "images" / "last.png")
    last = make_row(bits="w4a4", seed=1)
    first = RowFile(table).read()[0].sheets
    assert first is not None
    RowFile(table).append(
        last.model_copy(update={"sheets": first.model_copy(update={"quantized_images": "images/last.png"})})
    )
    render(table)
    page = (table / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<option value=.sheet-1-\d+. selected>W4A8 eda-dm<", page)


def test_sqnr_is_said_to_be_of_simulated_networks_where_integers_drew(table: Path) -> None:
    render(table)
    assert "of the simulated networks, also" not in (page := (table / "report.html").read_text(encoding="utf-8"))
    assert "images of every cell" in page
    RowFile(table).append(make_row(arithmetic="deployed", attention="bf16", samples=2048))
    render(table)
    page = (table / "report.html").read_text(encoding="utf-8")
    assert page.count("the simulated networks, also where integers drew the images") == 2  # curves and layers
    assert "SQNR of eps (simulated), dB" in page
    assert "images of that cell" in page


def test_nothing_outside_the_file_is_named(page: str) -> None:
    bare = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//\w|@import|url\(|fetch\(", bare)
    assert "default-src 'none'" in bare


def test_names_of_users_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    RowFile(tmp_path).append(make_row(model=evil, variant=evil, note=evil, device=evil, warnings=[evil]))
    render(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    assert "&lt;script&gt;alert" in html


def test_rows_that_lack_what_they_may_lack_make_a_page(tmp_path: Path) -> None:
    row = make_row("nearest", layers=[], selection=None, steps=[], base=None, versions=None, ssim=None, fd_train=None)
    older = row.model_copy(update={"image_seeds": None, "created": None, "psnr_interval_db": None})
    RowFile(tmp_path).append(older)
    render(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("do not say anything of single layers", "record no selection", "None of these recipes reconstructs"):
        assert words in html


def test_a_missing_picture_is_an_error_that_names_it(table: Path, rows: list[Row]) -> None:
    (table / "images" / "float.png").unlink()
    with pytest.raises(OutputError, match=r"images/float\.png: a picture of the report cannot be read"):
        render(table)


SHEET = "document.getElementById('sheet-1')"
CHOOSE = """(() => {
  const select = document.querySelector("select[data-fills=sheet-1-left]");
  select.value = "sheet-1-2";
  select.dispatchEvent(new Event("change"));
  const shown = document.getElementById("sheet-1-left"), chosen = document.getElementById("sheet-1-2");
  return [shown.src === chosen.src, shown.alt];
})()"""


@pytest.mark.skipif(EXECUTABLE is None, reason=MISSING)
def test_the_page_in_a_browser(page: str, table: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = table / "report.html"
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        for width in (1280, 390):
            seen = browser.open(path, width=width, touch=width < 500)
            seen.evaluate(f"{SHEET}.scrollIntoView({{block: 'center'}})")
            box = seen.evaluate(f"(b => [b.x, b.y, b.width, b.height])({SHEET}.getBoundingClientRect())")
            points = [(box[0] + share * box[2], box[1] + box[3] / 2) for share in (0.5, 0.8)]
            seen.swipe(*points) if width < 500 else seen.drag(*points)
            cut = seen.evaluate(f"{SHEET}.style.getPropertyValue('--cut')")
            assert float(cut.rstrip("%")) == pytest.approx(80, abs=1)
            same, words = seen.evaluate(CHOOSE)
            assert same
            assert "W8A8 eda-dm" in words
            assert layout_faults(seen) == []
            assert seen.complaints == []
            assert seen.requests == [path.as_uri()]
