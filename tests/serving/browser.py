"""Drives headless Chromium by the WebDriver protocol, which is JSON over HTTP, so that no package is needed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REQUIRED = ("chromium", "chromedriver")


def find_missing() -> str | None:
    """Returns the program that is missing, or None."""
    return next((program for program in REQUIRED if shutil.which(program) is None), None)


class Browser:
    """One tab of a browser."""

    def __init__(self, address: str):
        self._address = address
        options = {
            "binary": shutil.which("chromium"),
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--lang=en-US",
            ],
        }
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        session = self._send("POST", "/session", {"capabilities": capabilities})["sessionId"]
        self._address += f"/session/{session}"

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self._address + path, None if body is None else json.dumps(body).encode(), method=method
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]

    def open(self, url: str) -> None:
        self._send("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what the body of a JavaScript function returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Waits until a JavaScript expression is true."""
        until = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            text = self.run("return document.body.innerText")
            assert time.monotonic() < until, f"{condition}\n{text}"
            time.sleep(0.05)

    def type(self, selector: str, text: str) -> None:
        """Types with the keyboard; \\ue007 is Enter."""
        element = self._send("POST", "/element", {"using": "css selector", "value": selector})
        self._send("POST", f"/element/{next(iter(element.values()))}/value", {"text": text})

    def point(self, selector: str) -> None:
        """Moves the mouse over an element."""
        element = self._send("POST", "/element", {"using": "css selector", "value": selector})
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": element}
        pointer = {
            "type": "pointer",
            "id": "mouse",
            "parameters": {"pointerType": "mouse"},
            "actions": [move],
        }
        self._send("POST", "/actions", {"actions": [pointer]})

    def answer_dialog(self, text: str) -> str:
        """Types `text` into a prompt() of the page, once there is one; returns its message."""
        until = time.monotonic() + 30
        while True:
            try:
                message = str(self._send("GET", "/alert/text"))
                break
            except OSError:  # HTTP 404: no dialog
                assert time.monotonic() < until
                time.sleep(0.05)
        self._send("POST", "/alert/text", {"text": text})
        self._send("POST", "/alert/accept", {})
        return message

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the page."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self._send("POST", "/goog/cdp/execute", command)

    def save_screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def close(self) -> None:
        self._send("DELETE", "")


@contextmanager
def run_browser() -> Iterator[Browser]:
    """Runs a browser in this context."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        [str(shutil.which("chromedriver")), f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while True:
            try:
                browser = Browser(f"http://127.0.0.1:{port}")
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.1)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(20)
