"""The environment of a search: its costs and budgets with its real evaluation."""

from collections.abc import Callable
from typing import Literal

from haq.allocation.policy import Policy
from haq.allocation.trials import Score
from haq.envs.observations import Features
from haq.envs.quantization import QuantizationEnv
from haq.envs.rewards import Reward
from haq.errors import DivergedError
from haq.runs.evaluation import Evaluation
from haq.runs.plan import Plan
from haq.runs.scores import usable


def environment(
    planned: Plan,
    evaluation: Evaluation,
    reward: Literal["accuracy", "loss"] | Reward,
    score: Callable[[Policy], Score] | None = None,
    features: Features | None = None,
) -> QuantizationEnv:
    """Return the environment of a plan.

    Args:
        planned: Costs and budgets.
        evaluation: Scores the float network, and policies if nothing else does.
        reward: What the reward is made of.
        score: Of a policy, if somebody else evaluates.
        features: What is observed of a layer beside the paper's numbers.
    """

    def evaluate(policy: Policy) -> Score:
        try:
            result = evaluation.score(evaluation.network(policy))
        except DivergedError:
            result = None
        return usable(result, planned.images, (evaluation.float_score,))

    return QuantizationEnv(
        planned.table,
        score or evaluate,
        planned.budgets,
        evaluation.float_score.accuracy,
        float_loss=evaluation.float_score.loss,
        reward=reward,
        sensitivity=evaluation.sensitivity,
        features=features,
    )
