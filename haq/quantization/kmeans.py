"""The k-means of numbers on a line: solved exactly, by dynamic programming over sorted values.

Clusters of numbers are intervals, so the least sum of squares of k of them over the first j values
follows from that of k - 1 of them over fewer values. The best place of the last border only moves
to the right with j, which leaves n log n sums to look at for each cluster.
"""

import numpy as np
from numpy.typing import NDArray

POINTS = 2048
"""Values that are told apart exactly. Of more, neighbours are put together first, and the borders
are then moved among the values themselves until no value is nearer to another centroid."""

ROUNDS = 100
"""Rounds of moving the borders; it ends long before."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def kmeans(values: Floats, clusters: int) -> Floats:
    """Return the centroids with the least sum of squared distances, in rising order.

    Args:
        values: Finite numbers (n,), at least one.
        clusters: How many centroids there may be.

    Returns:
        ``clusters`` of them, or as many as there are different values where these are fewer. They
        are the best there are where at most ``POINTS`` values differ.

    >>> kmeans(np.array([0.0, 1, 1, 2, 7, 9]), 2).tolist()
    [1.0, 8.0]
    """
    points, counts = np.unique(values, return_counts=True)
    if len(points) <= clusters:
        return points
    line = _Line(points, counts.astype(np.float64))
    if len(points) <= POINTS:
        return line.means(_best_borders(line, clusters))
    places = _blocks(points, counts)
    rough = _Line(line.means(places), np.add.reduceat(counts, places[:-1]).astype(np.float64))
    return _settled(line, places[_best_borders(rough, clusters)])


class _Line:
    """Sorted points with weights, and what sums over neighbours are, by running sums."""

    def __init__(self, points: Floats, counts: Floats):
        self.points, self.middle = points, float(np.average(points, weights=counts))
        away = points - self.middle
        self.counts, self.sums, self.squares = (
            np.concatenate([[0.0], np.cumsum(counts * away**power)]) for power in range(3)
        )

    def __len__(self) -> int:
        return len(self.points)

    def cost(self, start: Ints, end: Ints) -> Floats:
        """Return the sums of squared distances of points start to end - 1 from their means."""
        count = self.counts[end] - self.counts[start]
        total = self.sums[end] - self.sums[start]
        squares = self.squares[end] - self.squares[start]
        result: Floats = squares - total * total / np.maximum(count, 1)
        return result

    def means(self, borders: Ints) -> Floats:
        """Return the mean of the points between each border and the next one."""
        start, end = borders[:-1], borders[1:]
        count = self.counts[end] - self.counts[start]
        result: Floats = (self.sums[end] - self.sums[start]) / count + self.middle
        return result


def _best_borders(line: _Line, clusters: int) -> Ints:
    """Return where the best clusters begin, and the number of points at the end."""
    count = len(line)
    ends = np.arange(count + 1)
    least = line.cost(np.zeros(count + 1, np.int64), ends)
    least[0] = 0.0
    chosen = []
    for used in range(2, clusters + 1):
        least, starts = _one_more(line, least, used - 1)
        chosen.append(starts)
    borders = [count]
    for starts in reversed(chosen):
        borders.append(int(starts[borders[-1]]))
    return np.array([*borders, 0][::-1], np.int64)


def _one_more(line: _Line, before: Floats, fewest: int) -> tuple[Floats, Ints]:
    """Return the least costs with one more cluster, and where that begins, for each end.

    Args:
        line: The points.
        before: The least costs without it.
        fewest: Points that the clusters before it need.
    """
    count = len(line)
    least, starts = np.full(count + 1, np.inf), np.zeros(count + 1, np.int64)
    low, high = np.array([fewest + 1]), np.array([count])  # of the ends that are open
    first, last = np.array([fewest]), np.array([count - 1])  # of where their clusters may begin
    while len(low):
        middle = (low + high) // 2
        top = np.minimum(last, middle - 1)
        sizes = top - first + 1
        at = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        number = np.repeat(np.arange(len(middle)), sizes)
        start = np.arange(int(sizes.sum())) - at[number] + first[number]
        costs = before[start] + line.cost(start, middle[number])
        smallest = np.minimum.reduceat(costs, at)
        where = np.flatnonzero(costs == smallest[number])
        best = start[where[np.searchsorted(number[where], np.arange(len(middle)))]]
        least[middle], starts[middle] = smallest, best
        low, high = np.concatenate([low, middle + 1]), np.concatenate([middle - 1, high])
        first, last = np.concatenate([first, best]), np.concatenate([best, last])
        open_ends = low <= high
        low, high, first, last = (x[open_ends] for x in (low, high, first, last))
    return least, starts


def _blocks(points: Floats, counts: Ints) -> Ints:
    """Return where blocks of neighbours begin: some of equal numbers, some of equal lengths."""
    half = POINTS // 2
    shares = np.cumsum(counts) / counts.sum()
    by_number = np.searchsorted(shares, np.arange(1, half) / half)
    by_length = np.searchsorted(points, np.linspace(points[0], points[-1], half + 1)[1:-1])
    return np.unique(np.concatenate([[0], by_number, by_length, [len(points)]]))


def _settled(line: _Line, borders: Ints) -> Floats:
    """Move borders between the points until each point is nearest to its own centroid."""
    for _ in range(ROUNDS):
        means = line.means(borders)
        moved = np.searchsorted(line.points, (means[1:] + means[:-1]) / 2, side="right")
        new = np.unique(np.concatenate([[0], moved, [len(line)]]))
        if len(new) < len(borders) or np.array_equal(new, borders):
            break
        borders = new
    return line.means(borders)
