"""Swagger UI as a person uses it, in a headless Chromium that can reach nothing but this host."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from schemas.registry import ROUTINES

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
METHODS = {"get", "put", "post", "delete", "patch", "head", "options"}
PATIENCE_S = 60
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1400,2000",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or DRIVER is None,
        reason="no browser here: install Debian's chromium and chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = BROWSER or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER or ""))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def page(browser: Chrome, service: httpx.Client) -> Chrome:
    """Open /docs and wait until every operation is drawn."""
    browser.get(f"{service.base_url}/docs")
    wanted = len(operations(service))
    WebDriverWait(browser, PATIENCE_S).until(lambda _: len(blocks(browser)) >= wanted)
    return browser


def operations(service: httpx.Client) -> list[str]:
    paths = service.get("/openapi.json").json()["paths"]
    return [
        operation["operationId"]
        for methods in paths.values()
        for method, operation in methods.items()
        if method in METHODS
    ]


def blocks(browser: Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, ".opblock")


def test_every_operation_is_shown(page: Chrome, service: httpx.Client) -> None:
    assert len(blocks(page)) == len(operations(service))
    complaints = [
        line for line in page.get_log("browser") if line["level"] == "SEVERE"
    ]  # a broken script, a blocked style, a missing file
    assert complaints == []


@pytest.mark.parametrize("name", ROUTINES)
def test_the_example_of_a_routine_executes(page: Chrome, name: str) -> None:
    family, short = name.split(".")
    block = page.find_element(By.ID, f"operations-{family}-{family}_{short}")
    page.execute_script("arguments[0].scrollIntoView()", block)
    press(page, block, ".opblock-summary-control")
    found(page, block, ".try-out__btn, .btn.execute")
    if not block.find_elements(By.CSS_SELECTOR, ".btn.execute"):
        press(page, block, ".try-out__btn")
    press(page, block, ".btn.execute")
    status = found(page, block, ".live-responses-table .response .response-col_status")
    assert status.text.split()[0] in {"200", "202"}
    body = found(page, block, ".live-responses-table .microlight").text
    assert name in body
    press(page, block, ".opblock-summary-control")  # what stays open is drawn again each time


def test_nothing_leaves_the_host(page: Chrome, tmp_path: Path) -> None:
    time.sleep(0.2)
    asked = [
        message["params"]["request"]["url"]
        for entry in page.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert any("/openapi.json" in url for url in asked)
    outside = [url for url in asked if urlsplit(url).scheme not in ("data", "blob", "chrome")]
    assert [url for url in outside if urlsplit(url).hostname != "127.0.0.1"] == []


def found(browser: Chrome, block: WebElement, selector: str) -> WebElement:
    """Wait for a part of an operation."""
    return WebDriverWait(browser, PATIENCE_S).until(
        lambda _: next(iter(block.find_elements(By.CSS_SELECTOR, selector)), None)
    )


def press(browser: Chrome, block: WebElement, selector: str) -> None:
    """Click a button of an operation."""
    browser.execute_script("arguments[0].click()", found(browser, block, selector))
