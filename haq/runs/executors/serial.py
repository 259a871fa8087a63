"""Evaluation in this process."""

from functools import cache, partial

from haq.runs.executors.base import Evaluate, Pending, Request


class SerialExecutor:
    """This process, which evaluates when it is asked for the result."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate

    def submit(self, request: Request) -> Pending:
        """Return the result to come."""
        return cache(partial(self._evaluate, request))

    def close(self) -> None:
        """Do nothing."""
