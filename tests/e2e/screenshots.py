"""Takes the pictures of the page at `/` that the docs show.

python -m tests.e2e.screenshots docs/images
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.e2e.served import SMALL, served

QUESTION = "What is the capital of France? Answer in one sentence."
MORE = "And of Spain?"
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'


def open_page(browser: Any, url: str, width: int, height: int, scheme: str) -> Page:
    """Return the page in a window of that size."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=2
    )
    page = context.new_page()
    page.goto(url)
    return page


def say(page: Page, text: str) -> None:
    """Say something, and wait for the whole answer."""
    page.fill("#input", text)
    page.press("#input", "Enter")
    page.locator("#stop").wait_for(state="visible", timeout=60_000)
    page.locator("#send").wait_for(state="visible", timeout=60_000)


def main(folder: Path) -> None:
    """Take the pictures."""
    program = shutil.which("chromium")
    with served("smollm2", *SMALL) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        page = open_page(browser, server.url, 1100, 820, "light")
        page.fill("#temperature", "0")
        page.fill("#max_tokens", "60")
        say(page, QUESTION)
        say(page, MORE)
        page.screenshot(path=folder / "page.png")
        page.locator(".turn .inspect").last.click()
        page.locator("#inspector-content svg").wait_for()
        page.screenshot(path=folder / "page-inspector.png")
        small = open_page(browser, server.url, 390, 720, "dark")
        small.fill("#input", "")
        small.evaluate("document.getElementById('max_tokens').value = '60'")
        say(small, QUESTION)
        small.screenshot(path=folder / "page-small.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
