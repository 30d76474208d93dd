"""The report in a real browser: it must load without errors and without asking the network for anything."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from mezzotint.evaluation.report import write_report
from mezzotint.evaluation.result import Evaluation

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = ["--headless", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr", "--v=0"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is on the PATH"),
]

# Runs in the report: moves the slider, then tells the page around it what it sees.
PROBE = """<script>
addEventListener("load", () => {
  const input = document.querySelector("input[data-slides]"), root = document.documentElement;
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  input.value = 20; input.dispatchEvent(new Event("input"));
  const right = (element) => element.getBoundingClientRect().right;
  const wide = [...document.querySelectorAll("body *")].filter((e) => right(e) > root.clientWidth + 1);
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    cut: document.getElementById("sheet").style.getPropertyValue("--cut"),
    wide: wide.filter((e) => !e.closest(".scroll")).map((e) => e.outerHTML.slice(0, 80)),
    requests: performance.getEntriesByType("resource").length,
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    charts: [...document.querySelectorAll(".chart svg")].filter((e) => e.getBoundingClientRect().width > 0).length,
  }), "*");
});
</script>"""

# A window cannot be as narrow as a phone, a frame can.
FRAME = """<!doctype html><body><script>
addEventListener("message", (event) => { document.body.dataset.seen = event.data; });
</script><iframe src="report.html" width="WIDTH" height="900"></iframe></body>"""


def browse(path: Path, profile: Path) -> tuple[str, str]:
    """(the page after loading, what the browser logged)."""
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [str(BROWSER), *FLAGS, *sandbox, f"--user-data-dir={profile}", "--window-size=1400,1000"]
    waiting = [*command, "--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    done = subprocess.run(waiting, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_report_loads_without_errors(
    tmp_path: Path, evaluation: Evaluation, image_pair: tuple[Tensor, Tensor], manifest: dict[str, Any], width: int
) -> None:
    path = write_report(evaluation, *image_pair, manifest, tmp_path / "report.html")
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    page, log = browse(frame, tmp_path / "profile")
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    message = re.search(r'data-seen="([^"]*)"', page)
    assert message is not None, "the report's script did not run"
    seen = json.loads(html.unescape(message[1]))
    assert seen == {"width": width, "cut": "20%", "wide": [], "requests": 0, "broken": 0, "charts": 3}
