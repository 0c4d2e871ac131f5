"""Debian's Chromium, headless, with the chat page in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()


class Page:
    """What a person does on the page, and what they see."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, key: str = "") -> Page:
        """Load it anew and, where the endpoint has a key, type that."""
        self.driver.get(f"{url}/")
        self.wait(lambda: self.text("worker") != "asking for the worker …")
        if key:
            self.fill("key", key)
        return self

    def element(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        """The text of an element, also where it is scrolled out of sight."""
        return str(self.element(name).get_property("textContent"))

    def turns(self, role: str) -> list[str]:
        """What was said by user or assistant, or the errors, from first to last; with their headings."""
        return [box.text for box in self.driver.find_elements(By.CSS_SELECTOR, f"#log .{role}")]

    def fill(self, name: str, text: str) -> None:
        self.element(name).clear()
        self.element(name).send_keys(text)

    def say(self, text: str) -> None:
        """Type a message and send it with Enter."""
        self.element("prompt").send_keys(text + Keys.ENTER)

    def idle(self) -> None:
        """Return once no answer is being received."""
        self.wait(lambda: self.element("send").is_enabled())

    def wait(self, test: Callable[[], object], timeout: float = 20) -> None:
        WebDriverWait(self.driver, timeout, poll_frequency=0.02).until(lambda _: test(), f"the log shows: {self.text('log')!r}")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a function's body in the page."""
        return self.driver.execute_script(script, *arguments)

    def look(self, *, width: int, height: int = 800, scheme: str = "light") -> None:
        """Take the size of a window and the colours that a system asks for."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """What the browser logged since the last call: script errors, refused loads; not the failed requests that a test provokes."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["source"] != "network"]


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser that knows nothing yet."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield Page(driver)
    finally:
        driver.quit()
