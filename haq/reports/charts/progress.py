"""The reward of each episode, and the best so far."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haq.allocation.trials import Trial, best
from haq.metrics import METRICS, Metric
from haq.reports.charts.theme import Chart, axis, counted, layout


def progress_chart(
    trials: Sequence[Trial],
    noise: Sequence[float | None],
    kind: str,
    metric: Metric = METRICS["top1"],
) -> Chart:
    """Return the reward of each episode, the best so far and how much the agent explored.

    Args:
        trials: All so far, at least one.
        noise: For each episode the sigma of the agent's noise, None where it chose uniformly or
            where the agent has none.
        kind: What the values of the trials are called.
        metric: Of these.
    """
    trials = [replace(trial, accuracy=metric.of_score(trial.accuracy)) for trial in trials]
    # Of equal accuracy the one of lower loss counts, so the best one is not always the first.
    tops = [best(trials[: at + 1]) for at in range(len(trials))]
    shown = metric.format
    data, about = _rewards(trials, tops, f"{kind} %{{customdata[0]:{shown}}}"), _plain_layout()
    if any(sigma is not None for sigma in noise):
        data.append(_noise([trial.episode for trial in trials], noise))
        about |= _layout_with_noise()
    top = tops[-1]
    sentence = (
        f"{counted(len(trials), 'episode')}, {sum(not t.cached for t in trials)} of them with a "
        f"policy not met before (filled); the best one, episode {top.episode}, has a reward of "
        f"{top.reward:.4g} ({kind} {metric.text(top.accuracy)})."
    )
    rows = [
        [t.episode, t.reward, t.accuracy, best_.accuracy, sigma]
        for t, best_, sigma in zip(trials, tops, noise, strict=True)
    ]
    columns = ("episode", "reward", kind, "best so far", "noise (sigma)")
    figure = {"data": data, "layout": about}
    return Chart("progress", "The search", sentence, figure, columns, rows)


def _rewards(trials: Sequence[Trial], tops: Sequence[Trial], accuracy: str) -> list[dict[str, Any]]:
    episodes = [trial.episode for trial in trials]
    return [
        {
            "type": "scatter", "mode": "markers", "name": "reward of the episode", "x": episodes,
            "y": [t.reward for t in trials], "customdata": [[t.accuracy] for t in trials],
            "marker": {
                "color": "--accent", "size": 7,
                "symbol": ["circle-open" if t.cached else "circle" for t in trials],
            },
            "hovertemplate": f"episode %{{x}}: reward %{{y:.4g}}, {accuracy}<extra></extra>",
        },
        {
            # A single episode is a line of no length: a marker shows it.
            "type": "scatter", "mode": "lines" if len(trials) > 1 else "lines+markers",
            "name": "best so far", "x": episodes,
            "y": [t.reward for t in tops], "customdata": [[t.accuracy] for t in tops],
            "line": {"color": "--depthwise", "width": 2, "shape": "hv"},
            "hovertemplate": f"best up to episode %{{x}}: {accuracy}<extra></extra>",
        },
    ]  # fmt: skip


def _noise(episodes: Sequence[int], noise: Sequence[float | None]) -> dict[str, Any]:
    return {
        "type": "scatter", "name": "exploration noise (sigma)",
        "mode": "lines" if sum(sigma is not None for sigma in noise) > 1 else "lines+markers",
        "x": list(episodes), "y": list(noise), "yaxis": "y2",
        "line": {"color": "--linear", "width": 2, "dash": "dot"},
        "hovertemplate": "episode %{x}: sigma %{y:.3f}<extra></extra>",
    }  # fmt: skip


def _plain_layout() -> dict[str, Any]:
    return layout(330, xaxis=axis("episode"), yaxis=axis("reward"))


def _layout_with_noise() -> dict[str, Any]:
    return {
        "height": 440,
        "xaxis": axis("episode", anchor="y2"),
        "yaxis": axis("reward", domain=[0.38, 1]),
        "yaxis2": axis("sigma", domain=[0, 0.28], rangemode="tozero"),
    }
