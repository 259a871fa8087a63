"""What holds of a network's parameters at every step of its training."""

from typing import Protocol


class Constraint(Protocol):
    """What holds of the weights at every step, such as that some are zero."""

    def resume(self) -> None:
        """Take over from the weights, which were read from a file."""
        ...

    def before_step(self, step: int) -> None:
        """Change the weights before a step, counted from 0."""
        ...

    def before_update(self) -> None:
        """Change the gradients before the optimizer sees them."""
        ...

    def apply(self) -> None:
        """Change the weights after the optimizer did."""
        ...


class _Together:
    def __init__(self, constraints: list[Constraint]) -> None:
        self._constraints = constraints

    def resume(self) -> None:
        for one in self._constraints:
            one.resume()

    def before_step(self, step: int) -> None:
        for one in self._constraints:
            one.before_step(step)

    def before_update(self) -> None:
        for one in self._constraints:
            one.before_update()

    def apply(self) -> None:
        for one in self._constraints:
            one.apply()


def together(*constraints: Constraint | None) -> Constraint | None:
    """Return several constraints as one, in their order; None where there are none."""
    some = [one for one in constraints if one is not None]
    return _Together(some) if some else None
