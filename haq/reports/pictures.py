"""Charts as PNG files, for papers: drawn by kaleido in a Chromium, without a network."""

from collections.abc import Sequence
from pathlib import Path

from haq.errors import HaqError
from haq.reports.charts.theme import THEMES, Chart, colored
from haq.reports.page import PLOTLY, plain
from haq.reports.record import read_run
from haq.reports.run_charts import all_charts


def write_pictures(folder: Path, place: Path, scale: float = 3) -> list[Path]:
    """Draw every chart of a run as a PNG file into the folder ``place`` and return the files.

    Args:
        folder: A run.
        place: Made if it is not there.
        scale: Pixels of the picture for one of the page.

    Raises:
        HaqError: kaleido is not installed or finds no Chromium.
    """
    return draw(all_charts(read_run(folder)), place, scale)


def draw(charts: Sequence[Chart], place: Path, scale: float = 3) -> list[Path]:
    """Draw charts as PNG files; see ``write_pictures``."""
    try:
        import kaleido
        from choreographer.errors import ChromeNotFoundError
    except ImportError as error:
        raise HaqError("--png needs kaleido: pip install 'haq[png]'") from error
    new = not place.exists()
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{chart.key}.png" for chart in charts]
    asked = []
    for chart, path in zip(charts, files, strict=True):
        figure = colored(plain(chart.figure), THEMES["light"])
        options = {"width": 1000, "height": figure["layout"]["height"], "scale": scale}
        asked.append({"fig": figure, "path": path, "opts": options})
    options_of_all = {"mathjax": False, "plotlyjs": PLOTLY.as_uri()}
    try:
        kaleido.write_fig_from_object_sync(asked, kopts=options_of_all, cancel_on_error=True)
    except ChromeNotFoundError as error:
        if new:
            place.rmdir()
        raise HaqError(
            "--png draws with Chromium or Chrome, and there is none: install one"
        ) from error
    return files
