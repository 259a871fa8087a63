"""What a notebook shows of a run."""

from html.parser import HTMLParser
from pathlib import Path

from haq.runs.api import Run

SUMMARY = {
    "state": "finished", "metric": "top1", "episodes": 1, "float_val_accuracy": 0.95,
    "final_val_accuracy": 0.9, "final_test_accuracy": 0.875,
    "budgets": [{"asked": "size=2kB", "achieved": 1500.0, "limit": 2000.0, "unit": "bytes"}],
    "layers": [
        {"name": "a<b>", "kind": "linear", "weight_bits": 3, "act_bits": 8, "params": 1200},
    ],
}  # fmt: skip


class Cells(HTMLParser):
    """Reads the texts of all cells, and whether every tag that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.texts.append(data)


def test_a_notebook_shows_accuracies_budgets_and_bits():
    html = Run(Path("results/mine"), SUMMARY, {}, [], None)._repr_html_()
    cells = Cells(html)
    assert cells.open == []
    assert cells.texts == [
        "accuracy", "validation", "test", "float network", "95.00%", "handed over", "90.00%",
        "87.50%", "budget", "reached", "limit", "size=2kB", "1,500 bytes", "2,000 bytes",
        "layer", "kind", "weights", "activations", "parameters", "a<b>", "linear", "3", "8",
        "1,200",
    ]  # fmt: skip
    assert "<b>mine</b>: finished, 1 episode<" in html and "script" not in html
