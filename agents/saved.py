"""What an agent learned, as the library that people know has it: DDPG of stable-baselines3."""

from collections.abc import Mapping

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DDPG

from haq.agents.base import Array
from haq.agents.learner import ACTOR_RATE, BATCH, HIDDEN, TAU

__all__ = ["DDPG", "stock"]

FIRST = "actor.mu.0.weight"


def stock(env: gym.Env[Array, Array], networks: Mapping[str, Array]) -> DDPG:
    """Return DDPG of stable-baselines3 with the networks that an agent learned.

    What its ``predict`` answers with ``deterministic=True`` is what the agent's actor says; what it
    ``learn``s from then on is learned by that library, a step at a time.

    Args:
        env: To play or to learn in. It may be of another network, target or budget, if as many
            numbers are observed of a layer.
        networks: From ``Agent.networks`` of ``Ddpg``.

    Raises:
        ValueError: The networks are others, or read observations of another length.
    """
    read, shown = len(networks.get(FIRST, np.zeros(1)).T), len(env.observation_space.sample())
    if FIRST in networks and read != shown:
        raise ValueError(
            f"the networks read {read} numbers of a layer, and this environment shows {shown}: "
            "make it as theirs was made (haq.make_env with sensitivity=False has the paper's 10)"
        )
    model = DDPG(
        "MlpPolicy", env, learning_rate=ACTOR_RATE, tau=TAU, gamma=1.0, batch_size=BATCH,
        policy_kwargs={"net_arch": HIDDEN}, device="cpu",
    )  # fmt: skip
    try:
        values = {name: torch.from_numpy(np.array(array)) for name, array in networks.items()}
        model.policy.load_state_dict(values)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"these are no networks of ddpg: {reason}") from error
    return model
