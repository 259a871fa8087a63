"""What is shown of a run."""

from haq.cli.terminal.run import accuracies

RUN = {
    "float_val_accuracy": 0.95, "float_test_accuracy": 0.94, "best_episode": 3,
    "episode_val_accuracy": 0.80, "final_val_accuracy": 0.92, "final_test_accuracy": 0.91,
}  # fmt: skip


def test_each_accuracy_says_of_which_network_it_is():
    assert accuracies(RUN) == [
        ("float network", 0.95, 0.94),
        ("as scored in its episode", 0.80, None),
        ("handed over", 0.92, 0.91),
    ]


def test_a_finalist_has_been_scored_twice():
    finalists = [{"episode": 3, "tuned_val_accuracy": 0.9}, {"episode": 1, "tuned_val_accuracy": 1}]
    assert ("fine-tuned", 0.9, None) in accuracies(RUN | {"finalists": finalists})


def test_an_unfinished_run_has_no_network_to_hand_over():
    running = {name: RUN[name] for name in ("float_val_accuracy", "episode_val_accuracy")}
    assert [label for label, *_ in accuracies(running)] == [
        "float network", "as scored in its episode",
    ]  # fmt: skip


def test_an_accuracy_of_zero_is_shown():
    assert accuracies({"float_val_accuracy": 0.0}) == [("float network", 0.0, None)]
