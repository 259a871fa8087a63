"""Route-constrained distillation: the teacher as it was on its way, from easy to hard."""


def anchor_at(done: int, total: int, anchors: int) -> int:
    """Return which of the teacher's states teaches after ``done`` of ``total`` epochs, from 0.

    Each of them teaches for as many epochs as the others; the last one is the final teacher.

    Args:
        done: Epochs that are over, fewer than ``total``.
        total: All of them.
        anchors: How many states there are, at most ``total``.

    Raises:
        ValueError: There are more states than epochs.

    Source: Jin et al., "Knowledge distillation via route constrained optimization",
    arXiv:1904.09149, section 3, with equal intervals.

    >>> [anchor_at(epoch, 10, 4) + 1 for epoch in range(10)]
    [1, 1, 1, 2, 2, 3, 3, 3, 4, 4]
    """
    if not 1 <= anchors <= total:
        raise ValueError(f"{anchors} states of a teacher do not go into {total} epochs")
    return done * anchors // total
