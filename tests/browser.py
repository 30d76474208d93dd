"""A headless Chromium for tests of pages, driven over the pipe of its DevTools protocol: no driver, port or package.

with Browser(profile) as browser:
    page = browser.open(path, width=390)
    page.evaluate("document.title")
    page.drag((10, 20), (200, 20))
    page.complaints     what the page or the browser wrote to the console, and exceptions of scripts
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = next((path for name in NAMES if (path := shutil.which(name))), None)
MISSING = f"none of {', '.join(NAMES)} is on the PATH"
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)
Point = tuple[float, float]


class Browser:
    """One process with a profile of its own, ended on exit."""

    def __init__(self, profile: Path) -> None:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()

        def pipes() -> None:  # the protocol's pipes are descriptors 3 and 4 of the browser
            read, write = os.dup(commands), os.dup(answers)
            os.dup2(read, 3)
            os.dup2(write, 4)

        command = [str(EXECUTABLE), *FLAGS, *sandbox, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._in)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The answer to one command; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def read(self) -> dict[str, Any]:
        """The next message; an event is kept too."""
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 16)
            if not part:
                raise RuntimeError("the browser has gone")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, width: int = 1280, height: int = 900, touch: bool = False) -> Page:
        """The page of a file, loaded, in a window of this many CSS pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        page.call("Page.navigate", url=path.as_uri())
        page.wait_for("Page.loadEventFired")
        return page


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def _events(self, method: str) -> list[dict[str, Any]]:
        events = self._browser.events
        return [e["params"] for e in events if e["method"] == method and e.get("sessionId") == self._session]

    def wait_for(self, method: str) -> None:
        while not self._events(method):
            self._browser.read()

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, as plain data; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def drag(self, start: Point, end: Point) -> None:
        """Presses the mouse at one point of the window, moves it to another, lets go."""
        for kind, (x, y), buttons in (
            ("mousePressed", start, 1),
            ("mouseMoved", end, 1),
            ("mouseReleased", end, 0),
        ):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    def swipe(self, start: Point, end: Point) -> None:
        """Puts a finger down at one point, moves it to another, lifts it."""
        for kind, points in (("touchStart", [start]), ("touchMove", [end]), ("touchEnd", [])):
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def press(self, key: str) -> None:
        """One stroke of a key, such as ArrowRight."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    @property
    def complaints(self) -> list[str]:
        """What stands in the console, and exceptions that no script caught."""
        found = [str(event["exceptionDetails"]) for event in self._events("Runtime.exceptionThrown")]
        found += [str(event["args"]) for event in self._events("Runtime.consoleAPICalled")]
        return found + [event["entry"]["text"] for event in self._events("Log.entryAdded")]

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for, what it carries in itself left out."""
        asked = [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith("data:")]


KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35}


def layout_faults(page: Page) -> list[str]:
    """Pictures that cannot be shown, and elements that stick out of the window; opens every <details> first."""
    return page.evaluate(FAULTS)


FAULTS = """(async () => {
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  await Promise.all([...document.images].map((image) => image.decode().catch(() => 0)));
  const edge = document.documentElement.clientWidth + 1;
  const wide = [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > edge);
  const broken = [...document.images].filter((image) => !image.naturalWidth);
  return [...wide.filter((e) => !e.closest(".scroll")), ...broken].map((e) => e.outerHTML.slice(0, 80));
})()"""
