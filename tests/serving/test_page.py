"""The page in headless Chromium: type, stream, stop, regenerate, edit, hover, reload, on a phone and in Korean."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser, find_missing, run_browser
from serving_fixtures import RunningServer, run_server

from krill.inference.engine import Generation, GenerationEngine, Progress
from krill.inference.load import LoadedModel

pytestmark = pytest.mark.skipif(find_missing() is not None, reason=f"{find_missing()} is not installed")
LAST = "document.querySelector('.assistant:last-child p').textContent"
IDLE = "document.getElementById('stop').hidden"
SCREENSHOTS = os.environ.get("KRILL_SCREENSHOTS")
"""Folder for screenshots to look at."""


class PacedEngine(GenerationEngine):
    """Takes 20 ms more for a step and never ends an answer early, so that it can be stopped on a busy machine."""

    def add(self, generation: Generation) -> None:
        generation.params = replace(generation.params, min_new_tokens=generation.params.max_new_tokens)
        super().add(generation)

    def step(self) -> list[Progress]:
        time.sleep(0.02)
        return super().step()


@pytest.fixture(scope="module")
def paced(tiny: LoadedModel) -> Iterator[RunningServer]:
    with run_server(tiny, build_engine=PacedEngine) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with run_browser() as running:
        yield running


def save(browser: Browser, name: str) -> None:
    if SCREENSHOTS:
        browser.save_screenshot(Path(SCREENSHOTS) / f"{name}.png")


def click(browser: Browser, selector: str) -> None:
    browser.run("document.querySelector(arguments[0]).click()", selector)


def test_a_session_in_the_browser(paced: RunningServer, browser: Browser) -> None:
    browser.resize(1200, 800)
    browser.open(paced.url)
    browser.wait("!document.getElementById('send').disabled")
    assert browser.run("return document.querySelectorAll('input[type=range]').length") == 6
    save(browser, "empty")
    # a completion streams in, and is stopped
    set_length = "const s = document.querySelector('[data-name=max_tokens]'); s.value = arguments[0];"
    browser.run(set_length + "s.dispatchEvent(new Event('input'))", 256)
    browser.type("#input", "옛날 옛적에\ue007")
    browser.wait(f"!{IDLE} && {LAST}.length > 5")
    shorter = browser.run(f"return {LAST}.length")
    browser.wait(f"{LAST}.length > {shorter} || {IDLE}")
    click(browser, "#stop")
    browser.wait(IDLE)
    browser.wait("document.querySelector('.assistant .tools').textContent.includes('stopped')", 5)
    deadline = time.monotonic() + 10
    while paced.worker.active and time.monotonic() < deadline:
        time.sleep(0.02)
    assert paced.worker.active == 0
    # again, with another result; then an edit
    browser.run(set_length + "s.dispatchEvent(new Event('input'))", 24)
    click(browser, ".again")
    browser.wait(f"{IDLE} && {LAST}.length > 0")
    assert browser.run("return document.querySelectorAll('.turn').length") == 2
    browser.run(
        "const s = document.getElementById('seed'); s.value = '7'; s.dispatchEvent(new Event('input'))"
    )
    click(browser, ".edit")
    assert browser.run("return document.getElementById('input').value") == "옛날 옛적에"
    browser.type("#input", " 왕이\ue007")
    browser.wait(f"document.querySelector('.user p').textContent === '옛날 옛적에 왕이' && {IDLE}")
    body = {"prompt": "옛날 옛적에 왕이", "seed": 7, "max_tokens": 24}
    own = paced.request("/v1/completions", body)[1]["choices"][0]["text"]
    assert browser.run(f"return {LAST}") == own
    save(browser, "text")
    # tokens
    click(browser, "#tab-tokens")
    browser.wait("document.querySelectorAll('#tokens span').length === 24")
    assert browser.run("return document.querySelector('#tip').hidden")
    browser.point("#tokens span:nth-child(3)")
    browser.wait(
        "!document.querySelector('#tip').hidden && document.querySelectorAll('#tip tr').length >= 5", 5
    )
    assert browser.run("return document.querySelectorAll('#tip tr.chosen').length") == 1
    save(browser, "tokens")
    # all of it is there after a reload, in Korean, dark, and on a phone
    click(browser, "#language")
    click(browser, "#theme")
    browser.open(paced.url)
    browser.wait("!document.getElementById('send').disabled")
    assert browser.run("return document.documentElement.lang") == "ko"
    assert browser.run("return document.querySelector('#send').textContent") == "보내기"
    assert browser.run("return document.documentElement.dataset.theme") in ("dark", "light")
    assert browser.run("return document.querySelectorAll('#tokens span').length") == 24
    save(browser, "korean-dark-tokens")
    click(browser, "#tab-text")
    assert browser.run(f"return {LAST}") == own
    # a chat
    browser.run(
        "const m = document.getElementById('mode'); m.value = 'chat'; m.dispatchEvent(new Event('change'))"
    )
    browser.type("#input", "안녕\ue007")
    browser.wait(f"{IDLE} && {LAST}.length > 0")
    browser.resize(390, 844)
    browser.open(paced.url)
    browser.wait(f"!document.getElementById('send').disabled && {LAST}.length > 0")
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    save(browser, "phone")
    click(browser, "#settings summary")
    save(browser, "phone-settings")
    # an error of the server is shown
    paced.worker.stop()
    click(browser, ".again")
    browser.wait("document.getElementById('error').textContent.includes('shutting down')")
    save(browser, "phone-error")


def test_the_page_asks_for_the_key(tiny: LoadedModel, browser: Browser) -> None:
    with run_server(tiny, api_key="sesame-1") as server:
        browser.open(server.url)
        for key in ("wrong", "비밀", " sesame-1 "):  # no header carries the second one
            assert browser.answer_dialog(key) == "This server needs an API key:"
        browser.wait("!document.getElementById('send').disabled")
        browser.type("#input", "a\ue007")
        browser.wait(f"{IDLE} && {LAST}.length > 0")
        browser.open(server.url)  # it is kept for this tab
        browser.wait("!document.getElementById('send').disabled")
