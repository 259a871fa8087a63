"""Draw the pictures of the service in docs/pictures anew: a service, some searches, Chromium.

    PYTHONPATH=tests python tests/tools/service_pictures.py [DIR]

Takes about five minutes on one core, most of them searches.
"""

import base64
import io
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from browser_parts import CHROMIUM, DRIVER, FLAGS
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from service_parts import wait_for
from service_server import Server

SMALL = {"model": "digits_cnn", "data": "digits", "float_epochs": 30, "target": "bismo-edge"}

SIZES = {"": (1100, 760), "-phone": (390, 800)}
"""Of a picture: in the width of a desk and of a phone."""


def main(out: Path) -> None:
    """Write the pictures into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            pictures(server, out)
        finally:
            server.process.terminate()
            server.process.wait()


def pictures(server: Server, out: Path) -> None:
    """Ask for searches, and look at each page at the right moment."""
    browser = started()
    budgets = [[f"avg_weight_bits={bits}"] for bits in ("2.7", "3", "3.5", "4", "6")]
    job = {**SMALL, "agent": "ilp", "episodes": 4, "title": "Front of digits", "tags": ["front"]}
    sweep = server.ask("/v1/sweeps", {"job": job, "budgets": budgets})
    ended = {"finished", "failed"}
    place = f"/v1/sweeps/{sweep['id']}"
    wait_for_long(lambda: all(r["state"] in ended for r in server.ask(place)["runs"]))
    guided = {**SMALL, "episodes": 20, "title": "Half the latency", "budgets": ["latency=50%w8a8"]}
    run = server.ask("/v1/runs", guided)
    wait_for_long(lambda: server.ask(f"/v1/runs/{run['id']}")["state"] in ended)
    for bits in (3, 4):
        asked = {
            **SMALL,
            "episodes": 60,
            "agent": "ddpg",
            "evaluation": "finetune",
            "reward": "metric",
        }
        server.ask("/v1/runs", asked | {"budgets": [f"avg_weight_bits={bits}"]})
    wait_for_long(lambda: [r for r in server.ask("/v1/runs")["runs"] if r["episodes"] == 3])
    for kind, (width, height) in SIZES.items():
        picture(browser, server, "/", out / f"service-home{kind}.png", width, height)
    picture(browser, server, "/new", out / "service-form.png", *SIZES[""])
    picture(browser, server, f"/sweeps/{sweep['id']}", out / "service-sweep.png", *SIZES[""])
    picture(browser, server, f"/runs/{run['id']}", out / "service-run.png", *SIZES[""])
    query = urlencode({"text": "digits", "order": "score"})
    picture(browser, server, f"/runs?{query}", out / "service-runs.png", *SIZES[""])
    browser.quit()


def wait_for_long(condition: object) -> None:
    """Wait for what takes longer than a test may."""
    for _ in range(10):
        try:
            wait_for(condition)
            return
        except AssertionError:
            continue
    raise SystemExit(f"this takes too long: {json.dumps(str(condition))}")


def started() -> webdriver.Chrome:
    """Return a Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, "--hide-scrollbars"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service(DRIVER))


def picture(
    browser: webdriver.Chrome, server: Server, path: str, file: Path, width: int, height: int
) -> None:  # fmt: skip
    """Write what is seen of a page without scrolling."""
    phone = width < 500
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(f"http://127.0.0.1:{server.port}{path}")
    wait_for(lambda: browser.execute_script("return document.readyState") == "complete")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
    whole = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    whole.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
    print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
