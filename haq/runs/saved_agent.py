"""The networks of a run's agent: kept when the last episode is over, and loaded again."""

from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium as gym
from safetensors import SafetensorError
from safetensors.numpy import load, save

from haq.agents import Agent, stock
from haq.agents.base import Array
from haq.errors import RunError
from haq.files import write_bytes
from haq.runs.folder import find_folder, read_job

if TYPE_CHECKING:
    from haq.agents.saved import DDPG

FILE = "agent.safetensors"


def save_agent(folder: Path, agent: Agent) -> None:
    """Keep what an agent learned; nothing where it learned no networks."""
    if networks := agent.networks():
        write_bytes(folder / FILE, save(dict(networks)))


def load_agent(run: str | Path, env: gym.Env[Array, Array]) -> "DDPG":
    """Return what the agent of a run learned, as DDPG of stable-baselines3.

    Args:
        run: Name or folder of a run of ``ddpg`` whose last episode is over.
        env: To play or to learn in, from ``make_env(..., sensitivity=False)``, which shows the 10
            numbers that ``ddpg`` sees; of any network, target and budget.

    Raises:
        RunError: There is no run, it keeps no networks, or they do not fit the environment.

    >>> agent = load_agent("mine", env)  # doctest: +SKIP
    >>> action, _ = agent.predict(observation, deterministic=True)  # doctest: +SKIP
    """
    folder = find_folder(run)
    path = folder / FILE
    if not path.exists():
        job = read_job(folder)
        raise RunError(
            f"run {folder} keeps no agent: ddpg keeps its networks when its last episode is over, "
            f"and this is a run of {job.agent}"
        )
    try:
        return stock(env, load(path.read_bytes()))
    except (SafetensorError, ValueError) as error:
        raise RunError(f"{path} cannot be used: {error}") from error
