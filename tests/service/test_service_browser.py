"""The page in a real Chromium: submit, watch live, look at the bits, take the ONNX file, run it."""

import contextlib
import io

import numpy as np
import pytest
from browser_parts import CHROMIUM, DRIVER, FLAGS
from service_parts import wait_for
from service_server import Server

from haq.allocation.policy import read_policy
from haq.hw_profiles import TARGETS
from haq.runs import folder as results

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM or not DRIVER,
        reason="needs Chromium and its driver (apt install chromium chromium-driver)",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("service"))
    yield made
    made.process.terminate()
    made.process.wait()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option(
        "prefs",
        {"download.default_directory": str(downloads), "download.prompt_for_download": False},
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(DRIVER))
    still = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    started.execute_cdp_cmd("Emulation.setEmulatedMedia", still)
    yield started
    started.quit()


def visit(browser, server, path):
    browser.get(f"http://127.0.0.1:{server.port}{path}")


def one(browser, selector):
    return browser.find_element("css selector", selector)


def every(browser, selector):
    return browser.find_elements("css selector", selector)


def text(browser, selector):
    """Return what stands there now; the page may be another one a moment later."""
    script = "return document.querySelector(arguments[0])?.innerText.trim() ?? ''"
    return browser.execute_script(script, selector)


def fill(browser, name, value):
    from selenium.webdriver.support.ui import Select

    field = one(browser, f"[name='{name}']")
    if field.get_attribute("type") == "radio":
        one(browser, f"[name='{name}'][value='{value}']").click()
    elif field.tag_name == "select":
        Select(field).select_by_value(value)
    else:
        field.clear()
        field.send_keys(value)


def quiet(browser):
    return [line for line in browser.get_log("browser") if "favicon" not in line["message"]]


def begin(browser, server, **fields):
    visit(browser, server, "/new")
    browser.execute_script(
        "document.querySelectorAll('#new details').forEach(fold => { fold.open = true; })"
    )
    small = {"float_epochs": "1", "final_epochs": "0", "train_images": "64", "val_images": "64",
             "calibration_images": "32"}  # fmt: skip
    for name, value in {**small, **fields}.items():
        fill(browser, name, value)


def test_submit_watch_look_download_run(browser, server, downloads):
    browser.get_log("browser")
    begin(browser, server, title="from the browser", episodes="40", agent="random",
          target="bismo-edge", **{"quantity.0": "latency", "budgets.0": "60%w8a8"})  # fmt: skip
    shown = wait_for(lambda: (t := text(browser, ".range[data-row='0']")).startswith("From") and t)
    assert "(cheapest policy) to" in shown and "8 bits everywhere" in shown
    one(browser, "button.main").click()

    wait_for(lambda: "/runs/" in browser.current_url)
    run_id = browser.current_url.rpartition("/")[2]
    wait_for(lambda: text(browser, "#state") == "finished")
    assert text(browser, "#episodes") == "40"

    wait_for(lambda: every(browser, "#plot-bits .bars path"))
    folder = server.files / "runs" / run_id
    policy = read_policy(folder / "policy.json")
    # Why each layer has its bits is there once the page of the finished run is.
    reasons = (
        "return [...document.querySelectorAll('#layers tbody tr')].map(r => r.cells[4].innerText)"
    )
    wait_for(lambda: (texts := browser.execute_script(reasons)) and all(texts))
    rows = [[cell.text for cell in row.find_elements("css selector", "th, td")]
            for row in every(browser, "#layers tbody tr")]  # fmt: skip
    assert {row[0]: (int(row[2]), int(row[3])) for row in rows} == dict(policy)

    one(browser, "#files a[href$='/model.onnx']").click()
    file = wait_for(lambda: next(downloads.glob("*.onnx"), None))
    assert runs_in_onnxruntime(file, folder)
    assert quiet(browser) == []


def test_the_client_of_the_api_page_works_as_it_stands(browser, server, tmp_path, monkeypatch):
    visit(browser, server, "/api")
    code = one(browser, "#client").text
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue().startswith("finished 0.")
    [session] = [onnxruntime_session(file) for file in tmp_path.glob("model.onnx")]
    assert session.get_inputs()[0].shape[1:] == [1, 8, 8]


def onnxruntime_session(file):
    import onnxruntime

    return onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])


def test_what_cannot_be_is_said_at_once_and_what_does_not_fit_cannot_be_chosen(browser, server):
    visit(browser, server, "/new")
    fill(browser, "model", "resnet20")
    wait_for(lambda: text(browser, ".error[data-live-error]"))
    assert one(browser, "#data option[value=digits]").get_attribute("disabled")
    fill(browser, "model", "digits_cnn")
    wait_for(lambda: text(browser, ".range[data-row='0']").startswith("From"))
    assert not every(browser, ".error[data-live-error]")
    browser.execute_script("document.getElementById('fold-bits').open = true")
    fill(browser, "pins", "conv1=9")
    one(browser, "#groups").click()
    sentence = "conv1: give at most 8, not '9'"
    wait_for(lambda: text(browser, ".error[data-live-error=pins]") == sentence)


def test_hardware_of_ones_own_is_brought_and_chosen(browser, server, tmp_path):
    visit(browser, server, "/new")
    browser.execute_script(
        "document.querySelectorAll('#new details').forEach(fold => { fold.open = true; })"
    )
    file = tmp_path / "board.json"
    file.write_bytes(TARGETS["bismo-edge"].read_bytes())
    one(browser, "#upload-target").send_keys(str(file))
    wait_for(lambda: text(browser, "#upload-said") == "board.json is here and chosen.")
    fill(browser, "quantity.0", "latency")
    wait_for(lambda: "cycles" in text(browser, ".range[data-row='0']"))
    file.write_text("{}")
    one(browser, "#upload-target").send_keys(str(file))
    wait_for(lambda: "the profile cannot be used" in text(browser, "#upload-said"))


def runs_in_onnxruntime(file, folder):
    import onnxruntime

    shape = results.read_json(folder / "summary.json")["images"]["shape"]
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    batch = [size if isinstance(size, int) else 1 for size in given.shape[:1]]
    kind = np.uint8 if "uint8" in given.type else np.float32
    [logits, *_] = session.run(None, {given.name: np.zeros([*batch, *shape], kind)})
    return logits.shape == (*batch, 10) and np.isfinite(logits).all()


def test_the_servers_sentence_stands_next_to_the_field_and_has_the_focus(browser, server):
    begin(browser, server, **{"quantity.0": "size", "budgets.0": "10"})
    one(browser, "button.main").click()
    wait_for(lambda: every(browser, "#errors"))
    assert browser.switch_to.active_element.get_attribute("id") == "errors"
    said = one(browser, "[id='budgets.0-error']").text
    assert said.startswith("no policy fits size <= 10 bytes: the cheapest one needs")
    assert one(browser, "[name='budgets.0']").get_attribute("aria-invalid") == "true"


def test_cancel_with_the_keyboard_then_compare(browser, server):
    from selenium.webdriver import Keys

    begin(browser, server, title="to be cancelled", episodes="100000", agent="random")
    one(browser, "button.main").click()
    wait_for(lambda: "/runs/" in browser.current_url)
    seen = set()
    wait_for(lambda: seen.add(text(browser, "#episodes")) or len(seen) >= 4)  # it is live
    one(browser, "form[action$='/cancel'] button").send_keys(Keys.ENTER)
    wait_for(lambda: text(browser, "#state") == "cancelled")
    assert every(browser, "form[action$='/retry']")

    begin(browser, server, title="to compare with", episodes="2", agent="random")
    one(browser, "button.main").click()
    wait_for(lambda: "/runs/" in browser.current_url)
    wait_for(lambda: text(browser, "#state") == "finished")

    visit(browser, server, "/runs")
    assert every(browser, "svg.spark polyline")
    for box in every(browser, "[name=run]")[:2]:
        box.send_keys(Keys.SPACE)
    one(browser, "#compare > button").send_keys(Keys.ENTER)
    wait_for(lambda: every(browser, "#side"))
    assert "to be cancelled" in one(browser, "main").text and not every(browser, "iframe")
    one(browser, "a[href^='/compare/report']").click()
    wait_for(lambda: every(browser, ".plot .main-svg"))
    assert "to be cancelled" in one(browser, "main").text


@pytest.mark.parametrize("path", ["/", "/runs", "/new", "/uploads", "/channels", "/api"])
def test_a_phone_needs_no_scrolling_to_the_side(browser, server, path):
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        visit(browser, server, path)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("path", ["/", "/runs", "/new", "/uploads", "/channels", "/api"])
def test_every_control_has_a_name_and_headings_are_in_order(browser, server, path):
    visit(browser, server, path)
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('input:not([type=hidden]), select, button')]"
        ".filter(e => !e.labels?.length && !e.ariaLabel && !e.textContent.trim())"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
    assert len(every(browser, "h1")) == 1 and every(browser, "html[lang=en]")
