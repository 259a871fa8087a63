"""The agents: who plays the environment, by name.

An agent is a generator ``play(env, episodes, seed, **options)`` that yields one ``Episode`` as soon
as it is finished; whoever listens may stop at any time. Equal environment, episodes, seed and
options give equal actions, whatever else draws from the process's random generators in between.
"""

from collections.abc import Callable, Iterator, Mapping

from haq.agents import ddpg, guided, ilp, random_search, uniform
from haq.agents.episode import Episode

AGENTS: Mapping[str, Callable[..., Iterator[Episode]]] = {
    "ddpg": ddpg.play,
    "guided": guided.play,
    "ilp": ilp.play,
    "random": random_search.play,
    "uniform": uniform.play,
}

INFORMED = frozenset({"guided", "ilp"})
"""The agents whose environment must have sensitivities."""

__all__ = ["AGENTS", "INFORMED", "Episode"]
