from haq.reports.reference.bench_judged import judged_tables


def row(agent, divergence, *, images=0, accuracy=(0.8,), against=None):
    return {
        "table": "t", "setting": "size=1kB", "agent": agent, "trained_images": images, "epochs": 2,
        "divergence": list(divergence), "accuracy": list(accuracy), "against": against or {},
    }  # fmt: skip


AGAINST = {"ilp": {"divergence": [-0.02, -0.03, -0.01], "accuracy": [0.0125, 0.005, 0.02]}}


def test_differences_are_shares_of_the_rivals_divergence():
    rows = [row("guided", [0.16, 0.2], against=AGAINST), row("ilp", [0.2])]
    text = judged_tables({"judged": rows}, {"t": "Network, data"})
    assert "Divergence of these answers for Network, data," in text
    assert "| guided | 0.1800 (0.1600 to 0.2000) |" in text
    assert "| guided \N{MINUS SIGN} ilp | -10.0 % (-15.0 to -5.0) |" in text
    assert text.index("| ilp |") < text.index("| guided |")
    assert "uniform" not in text and "epoch" not in text


def test_after_training_accuracy_stands_in_percent_and_in_points_more():
    rows = [
        row("ilp", [0.2], images=2500, accuracy=[0.85]),
        row("guided", [0.16, 0.2], images=2500, accuracy=[0.86, 0.865], against=AGAINST),
    ]
    text = judged_tables({"judged": rows}, {})
    assert "for t after the same epoch of 2,500 images (2 seeds of training)" in text
    assert "| ilp | 85.00; 0.2000 |" in text
    assert "| guided | 86.25 (86.00 to 86.50); 0.1800 (0.1600 to 0.2000) |" in text
    assert "| +1.25 (+0.50 to +2.00); -10.0 % (-15.0 to -5.0) |" in text


def test_a_rival_that_was_not_evaluated_under_a_budget_leaves_a_gap():
    here = row("guided", [0.1], against=AGAINST)
    there = {**row("ilp", [0.2]), "setting": "size=2kB"}
    text = judged_tables({"judged": [here, there]}, {})
    assert "| agent | size=1kB | size=2kB |" in text
    assert "| guided | 0.1000 |  |" in text
    assert "in pairs" not in text
