"""A real browser for tests of the page: Chromium by its WebDriver, spoken to over plain HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str | None:
    """Why there is no browser here, None where there is one."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed (Debian: chromium, chromium-driver)" if absent else None


@dataclass(frozen=True)
class Browser:
    """An open window."""

    address: str

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the driver answers to a command; a GET without a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {json.loads(error.read())['value']['message']}") from None

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """The window's size in CSS pixels, and the colours that its user prefers."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, file: Path, script: bool = True) -> None:
        """Open a file, with its scripts or as where they are switched off."""
        self.cdp("Emulation.setScriptExecutionDisabled", value=not script)
        self.log("performance")
        self.ask("/url", {"url": file.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns in the page, also where the page itself may run nothing."""
        return self.ask("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any) -> Any:
        """What a script gives to its callback, its last argument."""
        return self.ask("/execute/async", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        return str(self.ask("/element", {"using": "css selector", "value": selector})[ELEMENT])

    def click(self, selector: str) -> None:
        self.ask(f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self.ask(f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys one after another, where the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since it was last asked: ``browser`` (the console) or ``performance`` (the network and more)."""
        return list(self.ask("/se/log", {"type": kind}))

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def picture(self, file: Path, whole: bool = False) -> None:
        """The window, or the whole page, as a PNG file."""
        found = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def pages(self, file: Path) -> None:
        """The page as it prints, a PDF file."""
        file.write_bytes(base64.b64decode(self.cdp("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]))


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser of its own, closed at the end."""
    with tempfile.TemporaryDirectory() as profile:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert driver.stdout is not None
            line = next(line for line in driver.stdout if "started successfully on port" in line)
            address = f"http://127.0.0.1:{int(line.rstrip().rstrip('.').rpartition(' ')[2])}"
            options = {"args": [*ARGUMENTS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
            opened = Browser(address).ask("/session", {"capabilities": {"alwaysMatch": wanted}})
            browser = Browser(f"{address}/session/{opened['sessionId']}")
            yield browser
            with suppress(OSError):
                request = urllib.request.Request(browser.address, method="DELETE")
                urllib.request.urlopen(request, timeout=30).close()
        finally:
            driver.terminate()
            driver.wait(timeout=30)
