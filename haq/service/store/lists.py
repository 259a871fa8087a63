"""Lists of runs: which, in what order, page by page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Engine, and_, func, literal, or_, select

from haq.service.database import reading
from haq.service.store.rows import COLUMNS, GONE, Run, of_owner, run_of
from haq.service.tables import RUNS


class Order(NamedTuple):
    """An order of the list.

    Attributes:
        field: Of the run, by whose value it is sorted.
        missing: What stands for a value that is not there.
        falls: Whether the largest value comes first.
        key: What is compared.
    """

    field: str
    missing: float | str
    falls: bool
    key: Callable[[Any], Any] = lambda value: value

    def value(self, run: Run) -> float | str:
        """Return the value of a run, as a page ends with it."""
        value: float | str | None = getattr(run, self.field)
        return self.missing if value is None else value


ORDERS: Mapping[str, Order] = {
    "newest": Order("created", 0.0, True),
    "oldest": Order("created", 0.0, False),
    "ended": Order("finished", 0.0, True),
    "score": Order("best_accuracy", -1e300, True),
    "title": Order("title", "", False, func.lower),
}
"""By what lists of runs can be sorted: the last asked for, the first asked for, the last ended, the
best score, the title."""


def listed(
    engine: Engine,
    owner: str | None = None,
    states: Sequence[str] = (),
    text: str = "",
    limit: int = 50,
    before: tuple[float | str, str] | None = None,
    order: str = "newest",
    tag: str = "",
) -> list[Run]:
    """Return runs, the newest first unless another order is asked for.

    Args:
        engine: The database.
        owner: Whose; None for everyone's.
        states: Which states; none for all.
        text: What the title, the tags or the remark must hold, or a name in the job begin with.
        limit: How many at most.
        before: Value and id of the last run of the page before, as ``Order.value`` has it.
        order: One of ``ORDERS``.
        tag: A tag that the run must have.
    """
    by = ORDERS[order]
    query = select(*COLUMNS).where(RUNS.c.state != GONE, of_owner(owner))
    if states:
        query = query.where(RUNS.c.state.in_(states))
    if text:
        query = query.where(_holds(text))
    if tag:
        query = query.where(RUNS.c.tags.contains(f" {tag} ", autoescape=True))
    key = by.key(func.coalesce(RUNS.c[by.field], by.missing))
    if before is not None:
        query = query.where(_behind(key, by, *before))
    ends = [column.desc() if by.falls else column for column in (key, RUNS.c.id)]
    with reading(engine) as connection:
        return [run_of(row) for row in connection.execute(query.order_by(*ends).limit(limit))]


def _holds(text: str) -> ColumnElement[bool]:
    columns = (RUNS.c.title, RUNS.c.tags, RUNS.c.remark)
    named = [RUNS.c.asked.icontains(f'{mark}"{text}', autoescape=True) for mark in (":", "[", ",")]
    return or_(*(column.icontains(text, autoescape=True) for column in columns), *named)


def _behind(key: Any, by: Order, value: float | str, run_id: str) -> ColumnElement[bool]:
    last = by.key(literal(value, RUNS.c[by.field].type))
    if by.falls:
        return or_(key < last, and_(key == last, RUNS.c.id < run_id))
    return or_(key > last, and_(key == last, RUNS.c.id > run_id))


def of_sweep(engine: Engine, sweep: str, owner: str | None) -> list[Run]:
    """Return the runs of a sweep in the order of submission; of an owner, or (None) of anyone."""
    query = select(*COLUMNS).where(
        RUNS.c.sweep == sweep, RUNS.c.state != GONE, of_owner(owner)
    ).order_by(RUNS.c.created, RUNS.c.id)  # fmt: skip
    with reading(engine) as connection:
        return [run_of(row) for row in connection.execute(query)]


def tags(engine: Engine, owner: str | None, most: int = 2000) -> list[str]:
    """Return the tags of an owner's newest runs, or of everyone's, in their order."""
    query = (
        select(RUNS.c.tags).where(RUNS.c.tags != "", RUNS.c.state != GONE, of_owner(owner))
        .order_by(RUNS.c.created.desc()).limit(most)
    )  # fmt: skip
    with reading(engine) as connection:
        return sorted({tag for text in connection.scalars(query) for tag in text.split()})
