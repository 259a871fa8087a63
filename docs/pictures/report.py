"""Draw the picture of a report that README.md shows: ``python docs/pictures/report.py RUN``.

RUN is a finished run; its page is made anew, opened in Chromium and its upper part kept as
docs/pictures/report.webp.
"""

import argparse
import base64
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from haq.reports.report import report_html
from haq.runs.folder import find_folder

PICTURE = Path(__file__).with_name("report.webp")

WIDTH, HEIGHT = 1180, 1130  # pixels of the page

LARGEST = 150_000
"""Bytes of the picture at most."""


def screenshot(page: str) -> bytes:
    """Return the upper part of a page as PNG."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    service = Service(shutil.which("chromedriver"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=service)
    with tempfile.TemporaryDirectory() as folder, chrome as browser:
        file = Path(folder) / "report.html"
        file.write_text(page, encoding="utf-8")
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1.5, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(file.as_uri())
        WebDriverWait(browser, 10).until(
            lambda page: page.find_elements("css selector", "#chart-bits .main-svg")
        )
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    return base64.b64decode(shot["data"])


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="name or folder of a finished run")
    page = report_html(find_folder(parser.parse_args().run))
    picture = Image.open(io.BytesIO(screenshot(page))).convert("RGB")
    quality = 90
    while True:
        picture.save(PICTURE, quality=quality, method=6)
        if PICTURE.stat().st_size <= LARGEST or quality <= 30:
            break
        quality -= 10
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes, {picture.width}x{picture.height}")


if __name__ == "__main__":
    main()
