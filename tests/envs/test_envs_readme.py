"""What the environment's README shows works."""

from pathlib import Path

from readme_blocks import run_blocks

import haq.envs
from haq.allocation.trials import Score


def test_the_examples_run():
    names = run_blocks(Path(haq.envs.__file__).with_name("README.md"))
    assert names["env"].observation_space.shape == (13,)  # two sensitivities and a feature
    assert names["info"]["cost"]["avg_weight_bits"] <= 6
    assert names["reward"](Score(0.9, 0.5), Score(0.92, 0.3)) == 100 * (0.9 - 0.92) - 10 * (
        0.5 - 0.3
    )
