"""The agents: who plays the environment, by name.

An agent is a class with ``propose`` and ``learn`` (``haq.agents.base``) and a line in ``AGENTS``;
one of another package is named ``package.module:Class``. ``play`` plays what an agent proposes.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from haq.agents.base import Agent, Proposal
from haq.agents.ddpg import Ddpg
from haq.agents.driver import Episode, play
from haq.agents.guided import Guided
from haq.agents.ilp import Ilp
from haq.agents.random_search import RandomSearch
from haq.agents.saved import stock
from haq.agents.trust_region import TrustRegion
from haq.agents.uniform import Uniform
from haq.errors import HaqError, look_up, meant

AGENTS: Mapping[str, type[Agent]] = {
    "ddpg": Ddpg,
    "guided": Guided,
    "ilp": Ilp,
    "random": RandomSearch,
    "trust": TrustRegion,
    "uniform": Uniform,
}

__all__ = ["AGENTS", "Agent", "Episode", "Proposal", "find", "play", "stock"]


def find(name: str) -> type[Agent]:
    """Return the class of an agent: a line of ``AGENTS``, or one of any importable module.

    Args:
        name: Such as "guided", or "package.module:Class" for an agent of one's own. The module is
            imported, so such a name must come from somebody who may run code here.

    Raises:
        HaqError: There is no such agent, its module cannot be imported, or it is no ``Agent``.

    >>> find("guided").__name__
    'Guided'
    >>> find("haq.agents.ilp:Ilp") is find("ilp")
    True
    """
    if ":" not in name:
        return look_up(AGENTS, "agent", name)
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise HaqError(
            f"agent {name!r}: write it like package.module:Class, or take one of "
            f"{', '.join(AGENTS)}"
        )
    members = _imported(name, module)
    if attribute not in members:
        raise HaqError(
            f"agent {name!r}: module {module!r} has no {attribute!r}{meant(attribute, members)}"
        )
    agent = members[attribute]
    if not (inspect.isclass(agent) and issubclass(agent, Agent)) or inspect.isabstract(agent):
        raise HaqError(
            f"{name!r} is not an agent: derive the class from haq.agents.Agent, with a method "
            "propose(number)"
        )
    return agent


def _imported(name: str, module: str) -> Mapping[str, Any]:
    try:
        return vars(importlib.import_module(module))
    except Exception as error:  # whatever somebody else's module raises
        raise HaqError(
            f"agent {name!r}: module {module!r} cannot be imported ({error}); write it like "
            "package.module:Class, with the folder of the package on PYTHONPATH"
        ) from error
