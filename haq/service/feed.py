"""Live events: one look at the database for all who read, and nobody misses one.

An event is formatted once, whoever reads it. A reader pulls at its own pace: what has left the
memory by then it gets from the database, by number.
"""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from fastapi.sse import format_sse_event
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from haq.service import store
from haq.service.scores import metric_of_run, text_of

KEPT = 500
"""Events of a run kept in memory."""

PING_S = 15.0


@dataclass
class _Channel:
    """What is known of a run that someone watches."""

    run: store.Run | None
    number: int  # of the last event in memory
    readers: int = 0
    events: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=KEPT))
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Feed:
    """Follows runs for as long as someone reads their events."""

    def __init__(self, engine: Engine, poll_s: float) -> None:
        self._engine, self._poll_s = engine, poll_s
        self._channels: dict[str, _Channel] = {}
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._users: Counter[str] = Counter()
        self.closing = False

    def readers_of(self, user: str) -> int:
        """How many streams a user reads now."""
        return self._users[user]

    @property
    def readers(self) -> int:
        """How many read now."""
        return sum(channel.readers for channel in self._channels.values())

    def end(self) -> None:
        """End all streams; may be called from anywhere."""
        self.closing = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for channel in self._channels.values():
            channel.wake()

    async def follow(
        self, run: store.Run, after: int, may: Callable[[], bool], user: str
    ) -> AsyncIterator[bytes]:
        """Yield the events of a run as they come, until the run is over.

        Args:
            run: Which.
            after: The number of the last event that the reader knows.
            may: Asked now and then whether the reader still may.
            user: Who reads.
        """
        channel = self._channels.setdefault(run.id, _Channel(run, run.events))
        channel.readers += 1
        self._users[user] += 1
        self._loop = asyncio.get_running_loop()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        try:
            asked = time.monotonic()
            async for piece in self._pieces(channel, run.id, after):
                yield piece
                if time.monotonic() - asked > PING_S:
                    asked = time.monotonic()
                    if not await asyncio.to_thread(may):
                        return
        finally:
            channel.readers -= 1
            self._users[user] -= 1
            self._users += Counter()  # without those who read nothing
            if not channel.readers:
                self._channels.pop(run.id, None)

    async def _pieces(self, channel: _Channel, run_id: str, number: int) -> AsyncIterator[bytes]:
        last = b""
        yield format_sse_event(comment="events of one run", retry=2000)
        while not self.closing:
            changed = channel.changed
            for place, piece in await self._since(channel, run_id, number):
                number = place
                yield piece
            now = channel.run
            if now is None:
                yield format_sse_event(event="end", data_str="{}")
                return
            if now.state in store.OVER and number >= now.events:
                yield format_sse_event(event="end", data_str=json.dumps({"state": now.state}))
                return
            stand = _stand(now)
            if stand != last:
                last = stand
                yield stand
            try:
                await asyncio.wait_for(changed.wait(), PING_S)
            except TimeoutError:
                yield format_sse_event(comment="still here")

    async def _since(self, channel: _Channel, run_id: str, number: int) -> list[tuple[int, bytes]]:
        first = channel.events[0][0] if channel.events else channel.number + 1
        if number + 1 >= first:
            return [event for event in channel.events if event[0] > number]
        pieces: list[tuple[int, bytes]] = []
        while number < first - 1:
            events = await asyncio.to_thread(store.events_after, self._engine, run_id, number)
            if not events:
                break
            pieces += [(event.number, _piece(event)) for event in events]
            number = events[-1].number
        return pieces

    async def _watch(self) -> None:
        while self._channels and not self.closing:
            await asyncio.sleep(self._poll_s)
            try:
                await self._look()
            except SQLAlchemyError:
                pass  # busy, or away for a while: the next look finds what was missed

    async def _look(self) -> None:
        channels = dict(self._channels)
        runs = await asyncio.to_thread(store.seen, self._engine, list(channels))
        for run_id, channel in channels.items():
            run = runs.get(run_id)
            if run is not None and run.events > channel.number:
                new = await asyncio.to_thread(
                    store.events_after, self._engine, run_id, channel.number
                )
                channel.events.extend((event.number, _piece(event)) for event in new)
                channel.number = new[-1].number if new else channel.number
                channel.wake()
            if run != channel.run:
                channel.run = run
                channel.wake()


def _piece(event: store.Event) -> bytes:
    return format_sse_event(event=event.kind, data_str=event.data, id=str(event.number))


def _stand(run: store.Run) -> bytes:
    """Return where a run stands; without a number, for it is not kept."""
    stand = {
        "state": run.state, "stage": run.stage, "done": run.done, "total": run.total,
        "note": run.note, "episodes": run.episodes, "best_accuracy": run.best_accuracy,
        "best": text_of(metric_of_run(run.job), run.best_accuracy),
        "seconds_left": seconds_left(run),
    }  # fmt: skip
    return format_sse_event(event="progress", data_str=json.dumps(stand))


def seconds_left(run: store.Run) -> float | None:
    """Return what the episodes left will take, at the pace of those before."""
    if run.state != "running" or run.episode_s is None:
        return None
    return round(run.episode_s * (run.episodes_asked - run.episodes), 1)
