"""What the parts of a search share, and the network of the best policy in the run's folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from haq.allocation.policy import Bits, Policy, read_policy, write_policy
from haq.allocation.trials import Trial, best
from haq.compression.chain import Record
from haq.errors import DivergedError, PolicyError
from haq.files import write_bytes
from haq.models.weights import packed
from haq.runs.evaluation import Evaluation
from haq.runs.executors import Executor
from haq.runs.job import Job
from haq.runs.places import write_chain
from haq.runs.plan import Plan
from haq.runs.progress import OnProgress

Key = tuple[tuple[str, Bits], ...]


class Search(NamedTuple):
    """All that the parts of a search share."""

    job: Job
    folder: Path
    planned: Plan
    evaluation: Evaluation
    executor: Executor
    trials: list[Trial]
    on_progress: OnProgress


def policy_key(policy: Policy) -> Key:
    """Return something hashable that is equal for equal policies."""
    return tuple(sorted(policy.items()))


def save_network(
    folder: Path, policy: Policy, weights: bytes, chain: Sequence[Record] = ()
) -> None:
    """Put a policy, its network and what the search did to that before into the run's folder."""
    # The policy comes last: where it stands, its network does.
    (folder / "policy.json").unlink(missing_ok=True)
    write_chain(folder, chain)
    write_bytes(folder / "weights.safetensors", weights)
    write_policy(folder / "policy.json", policy)


def repair_network(folder: Path, evaluation: Evaluation, trials: Sequence[Trial]) -> None:
    """Make up for a stop between the line of the best trial and that trial's network."""
    if trials and _saved_policy(folder) != best(trials).policy:
        policy = best(trials).policy
        try:
            network = evaluation.network(policy)
        except DivergedError:  # as in its trial
            return
        save_network(folder, policy, packed(network), evaluation.places.chain(policy))


def _saved_policy(folder: Path) -> Policy | None:
    try:
        return read_policy(folder / "policy.json")
    except PolicyError:
        return None
