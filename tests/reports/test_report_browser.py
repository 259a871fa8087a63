"""The report in a real Chromium: what it draws, that it is quiet, and how it is used."""

import base64
import json
import shutil

import pytest
from browser_parts import CHROMIUM, DRIVER, FLAGS
from PIL import Image

from haq.allocation.policy import read_policy
from haq.reports.charts.theme import THEMES
from haq.reports.compare import comparison_html
from haq.reports.pictures import draw
from haq.reports.record import read_run
from haq.reports.report import report_html
from haq.reports.run_charts import all_charts
from haq.runs import folder as results
from haq.runs.figures import write_figures
from haq.runs.job import parse_job
from haq.runs.run import run

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM or not DRIVER, reason="needs Chromium and its driver (apt install chromium "
        "chromium-driver)",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser") / "run"
    folder.mkdir()
    job = parse_job(model="digits_cnn", target="bismo-edge", budgets=["latency=60%w8a8"],
                    episodes=22, float_epochs=1, train_images=32, val_images=60, final_epochs=0,
                    threads=1, agent="ddpg",
                    evaluation="finetune", reward="metric")  # fmt: skip
    run(job, folder)
    write_figures(folder, lambda _: None)
    (folder / "report.html").write_text(report_html(folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield started
    started.quit()


@pytest.fixture
def page(browser, folder):
    """The report, opened anew as a large light page; both logs are empty before."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    emulate(browser)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get((folder / "report.html").as_uri())
    return browser


def emulate(browser, scheme="light", media=""):
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")


def drawn(page, key):
    """Return the traces as plotly holds them after drawing."""
    script = "return JSON.stringify(document.querySelector(arguments[0]).data)"
    return json.loads(page.execute_script(script, f"#chart-{key} .plot"))


def test_the_charts_hold_the_numbers_of_the_run(page, folder):
    policy = read_policy(folder / "policy.json")
    bits = {"y": {}, "y2": {}}
    for trace in drawn(page, "bits"):
        bits[trace["yaxis"]] |= dict(zip(trace["x"], trace["y"], strict=True))
    assert bits["y"] == {name: pair.weight for name, pair in policy.items()}
    assert bits["y2"] == {name: pair.act for name, pair in policy.items()}
    trials = results.read_trials(folder)
    cloud, *_ = drawn(page, "trials")
    assert cloud["x"] == pytest.approx([trial.cost["latency"] for trial in trials], rel=1e-6)
    assert cloud["y"] == pytest.approx([trial.accuracy for trial in trials], rel=1e-6)
    reward, _, sigma = drawn(page, "progress")
    assert reward["y"] == pytest.approx([trial.reward for trial in trials], rel=1e-6)
    assert sigma["y"] == [None] * 20 + [0.5, pytest.approx(0.05)]
    heat = drawn(page, "sensitivity")[0]
    known = results.read_json(folder / "sensitivity.json")["weights"]
    assert [value for _, value in heat["customdata"]] == [
        pytest.approx(value, rel=1e-6) for name in policy for value in known[name].values()
    ]


def test_every_chart_is_drawn(page, folder):
    shown = [chart.key for chart in all_charts(read_run(folder)) if "-" not in chart.key]
    for key in shown:
        size = page.execute_script(
            "const svg = document.querySelector(`#chart-${arguments[0]} .main-svg`);"
            "const box = svg.getBoundingClientRect(); return [box.width, box.height]", key
        )  # fmt: skip
        assert size[0] > 600 and size[1] > 200, key
    assert {"bits", "shares", "sensitivity", "roofline", "trials", "progress"} == set(shown)


def test_the_console_is_quiet_and_nothing_is_asked_for(page, folder):
    page.execute_async_script("setTimeout(arguments[0], 300)")
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages if message["method"] == "Network.requestWillBeSent"
    ]  # fmt: skip
    own = (folder / "report.html").as_uri()
    assert own in asked
    assert [url for url in asked if url != own and not url.startswith(("data:", "blob:"))] == []


def column(page, number):
    script = ("return [...document.querySelectorAll('#layer-table tbody tr')]"
              ".map((row) => row.cells[arguments[0]].textContent)")  # fmt: skip
    return page.execute_script(script, number)


def test_a_click_sorts_the_table_and_another_one_turns_it_round(page):
    head = page.find_elements("css selector", "#layer-table th button")[1]
    before = column(page, 1)
    head.click()
    assert column(page, 1) == sorted(before, key=int)
    head.click()
    assert column(page, 1) == sorted(before, key=int, reverse=True)
    assert page.execute_script("return arguments[0].parentElement.ariaSort", head) == "descending"
    heads = page.find_elements("css selector", "#layer-table th button")
    (place,) = (at for at, head in enumerate(heads) if head.text.startswith("latency"))
    heads[place].click()
    script = ("return [...document.querySelectorAll('#layer-table tbody tr')]"
              ".map((row) => Number(row.cells[arguments[0]].dataset.value))")  # fmt: skip
    cycles = page.execute_script(script, place)
    assert cycles == sorted(cycles) and len(cycles) > 1


def test_the_keyboard_reaches_and_sorts_the_table(page):
    from selenium.webdriver import ActionChains, Keys

    page.execute_script("document.querySelector('#layers .lead').tabIndex = -1;"
                        "document.querySelector('#layers .lead').focus()")  # fmt: skip
    ActionChains(page).send_keys(Keys.TAB, Keys.TAB, Keys.TAB, Keys.ENTER).perform()
    focused = page.switch_to.active_element
    assert focused.text.startswith("weight bits")
    assert column(page, 1) == sorted(column(page, 1), key=int)
    outline = page.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused)
    assert outline == "solid"


def test_the_first_stop_of_the_keyboard_leads_past_the_navigation(page):
    from selenium.webdriver import ActionChains, Keys

    ActionChains(page).send_keys(Keys.TAB).perform()
    link = page.switch_to.active_element
    assert link.text == "Skip to the content"
    link.send_keys(Keys.ENTER)
    assert page.execute_script("return document.activeElement.id") == "main"


def test_another_cost_can_be_chosen(page, folder):
    from selenium.webdriver.support.ui import Select

    Select(page.find_element("css selector", "#trials select")).select_by_value("trials-size")
    assert not page.find_element("id", "chart-trials").is_displayed()
    assert page.find_element("id", "chart-trials-size").is_displayed()
    cloud, *_ = drawn(page, "trials-size")
    sizes = [trial.cost["size"] for trial in results.read_trials(folder)]
    assert cloud["x"] == pytest.approx(sizes, rel=1e-6)


def color_of(page, selector, name):
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return page.execute_script(script, selector, name)


def rgb(color):
    return "rgb({}, {}, {})".format(*(int(color[at : at + 2], 16) for at in (1, 3, 5)))


def test_page_and_charts_turn_dark_and_back(page):
    for scheme in ("dark", "light"):
        emulate(page, scheme)
        ground, ink = rgb(THEMES[scheme]["--page"]), rgb(THEMES[scheme]["--ink"])
        assert color_of(page, "body", "backgroundColor") == ground
        assert color_of(page, "#chart-bits .main-svg", "backgroundColor") == ground
        assert color_of(page, "#chart-bits .xtick text", "fill") == ink


def test_print_is_light_and_fits_the_paper_even_where_it_is_dark(page):
    emulate(page, "dark", media="print")
    assert color_of(page, "body", "backgroundColor") == rgb(THEMES["light"]["--page"])
    assert color_of(page, "#chart-bits .xtick text", "fill") == rgb(THEMES["light"]["--ink"])
    assert color_of(page, "#chart-bits .main-svg", "width") == "660px"
    assert color_of(page, "nav", "display") == "none"
    printed = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")


BROKEN_WORDS = """
const broken = [];
const places = "h2, thead th, dt, .value, .note, .lead, .missing, figcaption, nav a";
for (const place of document.querySelectorAll(places)) {
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (const word of node.data.matchAll(/[A-Za-z]{2,14}/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1) broken.push(word[0]);
    }
  }
}
return broken;
"""

CUT = """
return [...document.querySelectorAll("main *, header *")]
  .filter((place) => !place.closest(".scroll, svg") && place.scrollWidth > place.clientWidth + 1
                     && place.clientWidth > 0 && getComputedStyle(place).display !== "inline")
  .map((place) => `${place.tagName} ${place.textContent.slice(0, 40)}`);
"""


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone_has_no_sideways_scrolling_nothing_cut_and_no_word_broken(page, width):
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert page.execute_script(CUT) == []
    assert page.execute_script(BROKEN_WORDS) == []
    # A layer's line: what it needs of columns is all in sight.
    assert page.execute_script(
        "const box = document.querySelector('#layer-table').closest('.scroll');"
        "return box.scrollWidth - box.clientWidth"
    ) <= 1  # fmt: skip
    assert page.execute_script("return document.querySelector('#chart-bits .main-svg')"
                               ".getBoundingClientRect().width") <= width  # fmt: skip


def test_the_numbers_of_a_chart_are_a_table_once_they_are_opened(page, folder):
    details = page.find_element("css selector", "#chart-trials details")
    assert not details.find_elements("css selector", "table")
    details.find_element("css selector", "summary").click()
    page.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")
    script = ("return [...document.querySelectorAll('#chart-trials details tbody tr')]"
              ".map((row) => Number(row.cells[1].dataset.value))")  # fmt: skip
    costs = [trial.cost["latency"] for trial in results.read_trials(folder)]
    assert page.execute_script(script) == pytest.approx(costs, rel=1e-6)
    details.find_elements("css selector", "th button")[1].click()
    assert page.execute_script(script) == pytest.approx(sorted(costs), rel=1e-6)


def test_charts_are_named_for_who_cannot_see_them(page):
    tree = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    seen = [node for node in tree if not node["ignored"]]
    names = {role: [node["name"]["value"] for node in seen if node["role"]["value"] == role]
             for role in ("group", "image", "button")}  # fmt: skip
    assert any(name.startswith("Bits of each layer. Weights have") for name in names["group"])
    assert names["image"] == []
    assert all(names["button"])


def test_a_comparison_is_drawn_and_quiet_too(browser, folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    browser.get_log("browser")
    (tmp_path / "compare.html").write_text(comparison_html([folder, other]), encoding="utf-8")
    browser.get((tmp_path / "compare.html").as_uri())
    markers = [trace for trace in drawn(browser, "front-latency") if trace["mode"] == "markers"]
    summary = results.read_json(folder / "summary.json")
    assert markers[0]["x"] == pytest.approx([summary["cost"]["latency"]] * 2, rel=1e-6)
    assert markers[0]["y"] == pytest.approx([summary["final_test_accuracy"]] * 2, rel=1e-6)
    assert browser.get_log("browser") == []


def test_pictures_for_papers(folder, tmp_path):
    pytest.importorskip("kaleido")
    charts = [chart for chart in all_charts(read_run(folder)) if chart.key in ("bits", "roofline")]
    paths = draw(charts, tmp_path / "png", scale=2)
    assert [path.name for path in paths] == ["bits.png", "roofline.png"]
    for path, chart in zip(paths, charts, strict=True):
        with Image.open(path) as picture:
            assert picture.size == (2000, 2 * chart.figure["layout"]["height"])
            assert len(picture.convert("RGB").getcolors(2**20)) > 50
