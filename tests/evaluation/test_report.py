from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.errors import ConfigError, OutputError
from mezzotint.evaluation.evaluate import compare_pairs
from mezzotint.evaluation.report import render_report, write_report
from mezzotint.evaluation.result import Evaluation
from mezzotint.evaluation.verdict import GRADES, bits_in_words, grade_of, verdict

Images = tuple[Tensor, Tensor]
VOID = {"meta", "link", "img", "input", "br", "hr"}
EXTERNAL = re.compile(r"""(?:src|href|action|poster|srcset)\s*=|url\(|@import|fetch\(|XMLHttpRequest|https?:|//\w""")
TEMPLATES = Path(__file__).parents[2] / "src/mezzotint/evaluation/templates"


class Page(HTMLParser):
    """Tags, attributes and `<data>` values of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.values: list[float] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.attributes.append((tag, found))
        if tag == "data":
            self.values.append(float(found["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.attributes if name == tag]


@pytest.fixture
def full(evaluation: Evaluation, image_pair: Images, manifest: dict[str, Any]) -> str:
    return render_report(evaluation, *image_pair, manifest)


@pytest.fixture(params=["full", "minimal", "nearest"])
def html(request: pytest.FixtureRequest, evaluation: Evaluation, image_pair: Images, manifest: dict[str, Any]) -> str:
    """Reports of a complete manifest, of none, and of a recipe that scores and reconstructs nothing."""
    empty: dict[str, Any] = {"density": [], "variety": [], "score": [], "radius": None}
    manifest["results"]["selection"].update(empty if request.param == "nearest" else {})
    manifest["results"].update({"units": []} if request.param == "nearest" else {})
    return render_report(evaluation, *image_pair, None if request.param == "minimal" else manifest)


def test_tags_nest_and_ids_are_unique(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.attributes:
        for reference in attributes.get("aria-labelledby", "").split():
            assert reference in ids


def test_nothing_outside_the_file_is_asked_for(html: str) -> None:
    assert "default-src 'none'" in html
    bare = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "DATA", html)
    found = {bare[match.start() : match.start() + 16] for match in EXTERNAL.finditer(bare)}
    within = {'src="DATA" width', 'src="DATA" alt="', 'href="data:,">\n<', 'href="#main">Ski', "src = chosen.src"}
    assert found <= within


def test_every_number_is_the_evaluations(full: str, evaluation: Evaluation) -> None:
    values = Page(full).values
    cost, paired, distance = evaluation.cost, evaluation.paired, evaluation.distance
    assert paired.ssim is not None
    expected = [
        *(x for e in (paired.psnr_mean, paired.psnr_pooled, paired.ssim) for x in (e.value, e.low, e.high)),
        *(distance.fd.value, distance.fd.low, distance.fd.high),
        paired.psnr_low,
        distance.fd_pca,
        *(row.sqnr_db for row in evaluation.steps),
        evaluation.sqnr_db,
        *(x for s in (cost.network, cost.pipeline) for x in (s.fp32, s.fp16, s.quantized, s.ratio)),
        cost.float_bops / 1e9,
        cost.quantized_bops / 1e9,
        cost.latency.float_seconds * 1e3,
        cost.latency.quantized_seconds * 1e3,
        cost.latency.speedup,
        *paired.psnr_images[:8],
        *sorted(paired.psnr_images)[:8],
    ]  # fmt: skip
    missing = [value for value in expected if value not in values]
    assert missing == []


def test_shown_text_of_a_number_is_its_rounded_value(full: str) -> None:
    shown = re.findall(r'<data value="([^"]+)">([^<]+)</data>', full)
    assert len(shown) > 40
    for value, text in shown:
        plain = float(text.replace("\u202f", "").replace("\u2212", "-").replace(",", ""))
        digits = len(text.partition(".")[2])
        scaled = [float(value) / unit for unit in (1, 1e3, 1e6)]
        assert any(
            abs(plain - candidate) <= max(0.5 * 10**-digits, abs(candidate) * 1e-2) * 1.0001 for candidate in scaled
        )


def test_units_and_selection_of_the_manifest_are_on_the_page(full: str, manifest: dict[str, Any]) -> None:
    page = Page(full)
    for unit in manifest["results"]["units"]:
        assert unit["name"] in page.text
        assert unit["nearest_loss"] in page.values
        assert unit["learned_loss"] in page.values
    assert "t = 800: 11 samples, density 2, variety 100, score 1" in page.text
    assert "kept in 1 of 2 units, nearest in 1" in " ".join(page.text.split())
    for text in ("reconstruction.iters", "conv_norm_out", "cd" * 32, "ab" * 32, "CC-BY-4.0", "2147483648", "2.13.0"):
        assert text in page.text


def test_the_worst_layers_are_on_the_page(full: str, evaluation: Evaluation, image_pair: Images) -> None:
    page = Page(full)
    assert "The 8 worst of 9" in " ".join(page.text.split())
    assert "down_blocks.7.conv" in page.text
    assert "down_blocks.8.conv" not in page.text
    assert {layer.sqnr_db for layer in evaluation.layers[:8]} <= set(page.values)
    blind = evaluation.model_copy(update={"layers": []})
    assert "did not look at single layers" in Page(render_report(blind, *image_pair, None)).text


def test_pairs_are_named_by_their_seeds(full: str, evaluation: Evaluation) -> None:
    psnr = evaluation.paired.psnr_images
    worst = sorted(range(len(psnr)), key=psnr.__getitem__)[:8]
    shown = [int(seed) for seed in re.findall(r"<span>№ (\d+)</span>", full)]
    assert shown == [evaluation.seed + row for row in [*range(8), *worst]]


def test_missing_parts_are_said(evaluation: Evaluation, image_pair: Images) -> None:
    for manifest in (None, {}, {"results": {}}, {"results": {"selection": None, "units": None}}):
        text = Page(render_report(evaluation, *image_pair, manifest)).text
        assert "records no selection" in text
        assert "records no units" in text
        assert "records no recipe" in text
        assert "does not say what stays in float" in text
        assert "not recorded" in text


def test_text_of_users_is_escaped(evaluation: Evaluation, image_pair: Images, manifest: dict[str, Any]) -> None:
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>'
    manifest["base"]["name"] = manifest["float_modules"][0] = manifest["config"]["recipe"] = evil
    manifest["results"]["units"][0]["name"] = manifest["files"][evil] = evil
    manifest["files"] = {evil: {"sha256": evil, "bytes": 1}}
    evaluation = evaluation.model_copy(update={"model": evil, "bits": evil, "device": evil, "warnings": [evil]})
    html = render_report(evaluation, *image_pair, manifest)
    assert "alert" in Page(html).text
    assert html.count("<script>") == 1
    assert "<img src=x" not in html


def test_every_image_has_words_and_every_chart_a_title(html: str) -> None:
    page = Page(html)
    assert all(image["alt"] for image in page.all("img"))
    assert all("aria-labelledby" in svg or svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    assert all("aria-label" in field for field in page.all("input"))
    assert all(
        box.get("tabindex") == "0" and box["aria-label"] for box in page.all("div") if box.get("class") == "scroll"
    )
    levels = [int(tag[1]) for tag, _ in page.attributes if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_small_images_are_enlarged_with_hard_edges_and_large_ones_are_few(
    evaluation: Evaluation, image_pair: Images
) -> None:
    small = render_report(evaluation, *image_pair, None)
    assert all(image["class"] == "pixelated" for image in Page(small).all("img"))
    large = tuple(images.repeat_interleave(8, 2).repeat_interleave(8, 3) for images in image_pair)
    page = Page(render_report(evaluation, *large, None))
    assert all(image["class"] == "" for image in page.all("img"))
    assert len(page.all("img")) == 3 + 3 * (4 + 4)


def test_infinite_values_are_shown(evaluation: Evaluation, image_pair: Images) -> None:
    a = image_pair[0]
    perfect = evaluation.model_copy(update={"paired": compare_pairs(a, a, resamples=2), "sqnr_db": float("inf")})
    html = render_report(perfect, a, a, None)
    assert "∞" in Page(html).text
    assert GRADES[0].name in Page(html).text


def test_images_of_another_evaluation_are_refused(evaluation: Evaluation, image_pair: Images) -> None:
    a, b = image_pair
    with pytest.raises(ConfigError, match=r"of 12 pairs, got images \[3, 3, 16, 16\]"):
        render_report(evaluation, a[:3], b[:3], None)


def test_file_is_written_whole_or_not_at_all(
    tmp_path: Path, evaluation: Evaluation, image_pair: Images, manifest: dict[str, Any]
) -> None:
    path = write_report(evaluation, *image_pair, manifest, tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render_report(evaluation, *image_pair, manifest)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match=r"missing/report\.html: cannot write the report"):
        write_report(evaluation, *image_pair, manifest, tmp_path / "missing" / "report.html")


def test_manifest_may_come_back_from_json(evaluation: Evaluation, image_pair: Images, manifest: dict[str, Any]) -> None:
    again = json.loads(json.dumps(manifest))
    assert render_report(evaluation, *image_pair, again) == render_report(evaluation, *image_pair, manifest)


@pytest.mark.parametrize(
    ("psnr", "index"), [(99.0, 0), (40.0, 0), (39.99, 1), (30.0, 1), (25.0, 2), (20.0, 3), (19.99, 4), (-5.0, 4)]
)
def test_grades_begin_at_their_thresholds(psnr: float, index: int) -> None:
    assert grade_of(psnr) is GRADES[index]


def test_verdict_says_the_numbers(evaluation: Evaluation) -> None:
    found = verdict(evaluation)
    text = " ".join(found.sentences)
    assert found.headline.startswith(bits_in_words("w4a8") + ": 7.4× smaller, ")
    assert f"{evaluation.paired.psnr_mean.value:.1f} dB" in text
    assert "4.1 dB at worst (t = 0)" in text
    assert "ran 1.50× as fast as the float network" in text


def test_a_model_of_the_same_size_is_not_called_smaller(evaluation: Evaluation) -> None:
    cost = evaluation.cost
    same = cost.model_copy(update={"network": cost.network.model_copy(update={"quantized": cost.network.fp32})})
    assert ": not smaller, " in verdict(evaluation.model_copy(update={"cost": same})).headline


def test_bits_in_words() -> None:
    assert bits_in_words("w4a8").replace("\u2011", "-") == "4-bit weights, 8-bit activations"
    assert bits_in_words("W4A32").replace("\u2011", "-") == "4-bit weights, float activations"
    assert bits_in_words("float") == "float"


def luminance(colour: str) -> float:
    channels = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = torch.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ torch.tensor([0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_colours_have_the_contrast_of_wcag_aa(theme: str) -> None:
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", block)) for block in css.split("@media", 2)[:2])
    colours = light if theme == "light" else {**light, **dark}
    on_paper = [(text, ground) for text in ("ink", "soft", "accent") for ground in ("paper", "raised")]
    on_plate = [(text, "plate") for text in ("plate-ink", "plate-soft", "plate-accent")]
    for text, ground in on_paper + on_plate:
        high, low = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{theme}: {text} on {ground}"
