"""The front of several runs: what each takes against what it scores, as an SVG without a script."""

from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 15, 45


class Point(NamedTuple):
    """A run in the plane.

    Attributes:
        cost: To the right.
        score: Upwards.
        label: What it is.
        href: Where it leads.
    """

    cost: float
    score: float
    label: str
    href: str


def front_of(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both, the cheapest first.

    >>> a, b, c = Point(1, 0.5, "", ""), Point(2, 0.4, "", ""), Point(3, 0.9, "", "")
    >>> front_of([c, b, a]) == [a, c]
    True
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best


def drawing(points: Sequence[Point], level: float | None = None) -> dict[str, Any]:
    """Return where to draw what.

    Args:
        points: At least one.
        level: A score that is drawn as a line, such as that of the float network.
    """
    scores = [one.score for one in points] + ([] if level is None else [level])
    across = _scale([one.cost for one in points], _LEFT, WIDTH - _RIGHT)
    up = _scale(scores, HEIGHT - _BOTTOM, _TOP)
    return {
        "width": WIDTH, "height": HEIGHT,
        "dots": [(round(across(p.cost), 1), round(up(p.score), 1), p) for p in points],
        "line": " ".join(f"{across(p.cost):.1f},{up(p.score):.1f}" for p in front_of(points)),
        "level": None if level is None else round(up(level), 1),
        "left": _LEFT, "right": WIDTH - _RIGHT, "bottom": HEIGHT - _BOTTOM, "top": _TOP,
        "costs": _ends([one.cost for one in points], across), "scores": _ends(scores, up),
    }  # fmt: skip


def _ends(values: Sequence[float], place: Any) -> list[tuple[float, float]]:
    return [(value, round(place(value), 1)) for value in dict.fromkeys((min(values), max(values)))]


def _scale(values: Sequence[float], first: float, last: float) -> Any:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or abs(low) * 0.1 or 1.0
    low, high = low - margin, high + margin
    return lambda value: first + (value - low) / (high - low) * (last - first)
