"""The page and the documentation in a real browser that reaches this service only."""

import base64
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from mlops_project.serving import keys
from mlops_project.serving.app import make_app
from mlops_project.serving.loading import load
from mlops_project.serving.settings import Settings

pytestmark = pytest.mark.integration

BROWSER, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync --disable-dev-shm-usage"
)
SECONDS = 20


class Site(NamedTuple):
    url: str
    key: str


@pytest.fixture(scope="module")
def site(trained, tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    _, key = keys.create(folder / "keys.json", "browser", "predict")
    files = trained().files
    assert load(files).outcome != "refused"
    app = make_app(Settings(files=files, keys=str(folder / "keys.json"), log=f"sqlite:///{folder}/log.db"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.02)
    yield Site(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", key)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not (shutil.which(BROWSER) and shutil.which(DRIVER)):
        reason = f"{BROWSER} or {DRIVER} is absent; Debian: apt-get install chromium chromium-driver"
        # A pipeline of checks must not lose this one without a word.
        pytest.fail(reason, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Driver(DRIVER)) as driver:
        yield driver


def look(driver: webdriver.Chrome, url: str, width: int = 1200, scheme: str = "light") -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    )
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    driver.get_log("performance"), driver.get_log("browser")
    driver.get(url)


def wait(driver: webdriver.Chrome, condition) -> None:
    WebDriverWait(driver, SECONDS, 0.05).until(condition)


def picture(driver: webdriver.Chrome, name: str, folder: Path) -> None:
    folder = Path(os.environ.get("SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot",
        {"captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}},
    )
    (folder / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def complaints(driver: webdriver.Chrome, url: str) -> list[str]:
    """What the browser complains of, and what was asked of anybody else."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    foreign = [found for found in asked if not found.startswith((f"{url}/", "data:", "blob:"))]
    return [entry["message"] for entry in driver.get_log("browser")] + foreign


def open_page(driver: webdriver.Chrome, site: Site, **view) -> None:
    look(driver, site.url, **view)
    wait(driver, lambda d: d.execute_script("return document.body.dataset.ready") == "yes")
    driver.find_element(By.ID, "key").send_keys(site.key)


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1200, "dark")])
def test_a_person_fills_in_an_applicant_and_sees_why(browser, site, contract, width, scheme, tmp_path):
    open_page(browser, site, width=width, scheme=scheme)
    # A control per column of the contract, each with a label, selects with the meanings of codes.
    for name in contract.features:
        column = contract.columns[name]
        control = browser.find_element(By.ID, f"field-{name}")
        label = browser.find_element(By.CSS_SELECTOR, f"label[for='field-{name}']").text
        assert label == column.english.replace("_", " ") + (f" ({column.unit})" if column.unit else "")
        if column.codes:
            assert [option.text for option in Select(control).options] == ["not known", *map(str, column.codes.values())]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#fields .field")) == len(contract.features)

    Select(browser.find_element(By.ID, "field-laufkont")).select_by_visible_text("no account")
    browser.find_element(By.ID, "field-laufzeit").send_keys("48")
    browser.find_element(By.ID, "field-alter").send_keys("-3", Keys.ENTER)
    wait(browser, lambda d: d.find_element(By.ID, "result").is_displayed())

    assert browser.find_element(By.ID, "decision").text in ("Approve", "Refuse")
    assert browser.find_element(By.ID, "score").text.isdigit()
    assert browser.find_element(By.ID, "default").text.endswith("%")
    reasons = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#reasons li")]
    assert 1 <= len(reasons) <= 5
    assert any("48 months" in reason or "no account" in reason or "missing" in reason for reason in reasons)
    assert browser.find_element(By.ID, "treated").text.endswith("treated as missing: age years.")
    assert browser.execute_script("return document.activeElement.id") == "result"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert complaints(browser, site.url) == []
    # The key is nowhere but in the field.
    assert browser.execute_script("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
    assert site.key not in browser.current_url
    picture(browser, f"page-{width}-{scheme}", tmp_path)


def test_an_example_and_a_fresh_start(browser, site):
    open_page(browser, site)
    browser.find_element(By.ID, "example").click()
    browser.find_element(By.ID, "submit").click()
    wait(browser, lambda d: d.find_element(By.ID, "result").is_displayed())
    assert browser.find_elements(By.ID, "treated") == []
    assert browser.find_elements(By.ID, "missing") == []
    browser.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    assert not browser.find_element(By.ID, "result").is_displayed()


def test_faults_are_told(browser, site):
    look(browser, site.url)
    wait(browser, lambda d: d.execute_script("return document.body.dataset.ready") == "yes")
    browser.find_element(By.ID, "submit").click()
    wait(browser, lambda d: d.find_element(By.ID, "error").is_displayed())
    assert browser.find_element(By.ID, "error").text == "The API key is missing or not valid."


def test_all_controls_have_names_and_are_reached_by_keyboard(browser, site):
    open_page(browser, site)
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = [n for n in nodes if n.get("role", {}).get("value") in ("textbox", "combobox", "button") and not n.get("ignored")]
    assert len(controls) >= 20
    assert all(node["name"]["value"].strip() for node in controls)


def test_the_documentation_works_offline(browser, site, tmp_path):
    look(browser, f"{site.url}/docs")
    wait(browser, lambda d: d.find_elements(By.ID, "operations-predict-predict"))
    wait(browser, lambda d: "Score one applicant" in d.find_element(By.ID, "operations-predict-predict").text)
    browser.find_element(By.CSS_SELECTOR, "#operations-predict-predict button").click()
    wait(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "#operations-predict-predict .try-out"))
    assert complaints(browser, site.url) == []
    picture(browser, "docs", tmp_path)
