"""The report in a real browser that has no network: everything is visible, nothing is fetched, nothing overflows."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync --disable-dev-shm-usage --host-resolver-rules=MAP\u00a0*\u00a0~NOTFOUND"
)
SECTIONS = (
    "glance", "model", "performance", "calibration", "policy", "uncertainty", "fairness", "stability", "drivers", "data",
    "lineage",
)  # fmt: skip
# What sticks out of the page, but for what scrolls inside a box of its own.
STICKS_OUT = """
return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, nav') &&
  (e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1)).map(e => e.outerHTML.slice(0, 80))
"""
# Texts of a figure that lie over each other by more than a hair.
OVERLAPS = """
return [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1.5 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1.5).map(([b]) => a + ' / ' + b));
})
"""
# Texts of a figure that its box cuts off, and the smallest one's height in pixels.
CUT_OFF = """
return [...document.querySelectorAll('figure svg')].flatMap(svg => { const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(t => { const r = t.getBoundingClientRect();
    return r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1;
  }).map(t => t.textContent);
})
"""
SMALLEST_TEXT = "return Math.min(...[...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not (shutil.which(BROWSER) and shutil.which(DRIVER)):
        reason = f"{BROWSER} or {DRIVER} is absent; Debian: apt-get install chromium chromium-driver"
        # A pipeline of checks must not lose this one without a word.
        pytest.fail(reason, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS.split():
        options.add_argument(flag.replace("\u00a0", " "))
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(DRIVER)) as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions", {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        )
        yield driver


def look(driver: webdriver.Chrome, page: Path, width: int, scheme: str = "light") -> None:
    # A window cannot be as narrow as a phone, a device can.
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    )
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    driver.get(page.as_uri())


@pytest.mark.integration
@pytest.mark.parametrize(("name", "width", "scheme"), [
    ("default", 400, "light"), ("default", 1200, "dark"), ("other", 400, "dark"), ("other", 1200, "light"),
])  # fmt: skip
def test_all_is_visible_and_nothing_is_fetched(browser, reports, name, width, scheme):
    page = reports[name]
    browser.get_log("performance"), browser.get_log("browser")
    look(browser, page, width, scheme)

    assert browser.execute_script("return innerWidth") == width
    for section in SECTIONS:
        # Visible, high enough to hold something, and reachable from the table of contents.
        assert browser.find_element("id", section).is_displayed(), section
        assert browser.find_element("id", section).size["height"] > 80, section
        assert browser.find_elements("css selector", f"nav a[href='#{section}']"), section
    assert len(browser.find_elements("css selector", "main > section")) == len(SECTIONS)
    drawn = browser.find_elements("css selector", "figure svg")
    assert len(drawn) >= 8
    assert all(svg.is_displayed() and svg.size["height"] > 90 for svg in drawn)

    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(STICKS_OUT) == []
    assert browser.execute_script(OVERLAPS) == []
    assert browser.execute_script(CUT_OFF) == []
    assert browser.execute_script(SMALLEST_TEXT) > 8

    # The table of contents stays in sight.
    browser.execute_script("document.documentElement.style.scrollBehavior = 'auto'; scrollTo(0, 3000)")
    assert browser.execute_script("return document.querySelector('nav').getBoundingClientRect().top") == 0

    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requested if not url.startswith("data:")] == [page.as_uri()]
    assert [e for e in events if e["method"] == "Network.loadingFailed"] == []

    folder = Path(os.environ.get("SCREENSHOTS", page.parent))
    folder.mkdir(parents=True, exist_ok=True)
    size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    browser.execute_script("scrollTo(0, 0)")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": int(size["height"]), "deviceScaleFactor": 1, "mobile": width < 600},
    )
    picture = folder / f"{name}-{width}-{scheme}.png"
    browser.save_screenshot(str(picture))
    assert picture.stat().st_size > 50_000


@pytest.mark.integration
@pytest.mark.parametrize("name", ["default", "other"])
def test_it_fits_on_printed_paper(browser, reports, name):
    look(browser, reports[name], 680)  # A4 without its margins
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    # A table that had to be scrolled would be cut off.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 680
    assert not browser.find_element("tag name", "nav").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


@pytest.mark.integration
def test_what_is_fetched_would_be_noticed(browser, reports, tmp_path):
    """The checks above can fail: a page that asks the network for a script is noticed."""
    page = reports["default"]
    broken = tmp_path / "broken.html"
    policy = 'http-equiv="Content-Security-Policy"'
    text = page.read_text(encoding="utf-8").replace(policy, "name=none")
    broken.write_text(text.replace("</main>", '<script src="https://example.org/x.js"></script></main>'), encoding="utf-8")
    browser.get_log("performance"), browser.get_log("browser")
    look(browser, broken, 1200)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    assert any(e["method"] == "Network.loadingFailed" for e in events)
    assert browser.get_log("browser") != []
