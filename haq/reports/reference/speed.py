"""Markdown of how long searches and their parts take."""

from typing import Any

from haq.reports.reference.markdown import markdown


def original_tables(records: list[dict[str, Any]]) -> str:
    """Return the original code's times beside ours."""
    (record,) = records
    rounds, reported = len(record["rounds"]), record["reported"]
    lead = (
        f"One episode of {record['model']} ({record['train_images']} + {record['val_images']} "
        "images) by the original code's procedure, written anew, and by ours: medians of "
        f"{rounds} rounds in turns, one thread of a busy machine; how many times as long the "
        "original takes in the same round (lowest to highest). Outside the network's forward and "
        f"backward passes: {record['share_outside_the_network']:.1%} of our fine-tuned episode:"
    )
    head = ["episode", "CPU seconds", "original, linear, takes", "original, size, takes"]
    rows = [
        [name, f"{seconds:.1f}", *(_times(record, slow, name) for slow in _SLOW)]
        for name, seconds in record["cpu_seconds"].items()
    ]
    then = (
        f"From loaded data and weights to a policy of {reported['avg_weight_bits']} average bits "
        "by `--agent ilp`, nothing fine-tuned, beside the original's size search "
        f"({reported['test_accuracy']:.2%} after its epoch, {reported['cpu_seconds']:,} CPU "
        f"seconds reported on another machine; or {reported['episodes']} of its episodes as timed "
        "above):"
    )
    policies = [
        [
            f"activations {row['activations']}, {row['method']}", f"{row['test_accuracy']:.2%}",
            f"{row['cpu_seconds']:.0f}", f"{row['ratio_to_reported']:.0f}",
            f"{row['ratio_to_episodes_timed_here']:.0f}",
        ]
        for row in record["to_a_policy"]
    ]  # fmt: skip
    columns = ["policy", "test", "CPU seconds", "reported takes times", "episodes take times"]
    return markdown(lead, head, rows) + "\n\n" + markdown(then, columns, policies)


_SLOW = ("original, linear", "original, size")


def _times(record: dict[str, Any], slow: str, fast: str) -> str:
    ratio = record["ratios"].get(f"{slow} / {fast}")
    if ratio is None:
        return "-"
    return f"{ratio['median']:.1f} ({ratio['lowest']:.1f} to {ratio['highest']:.1f})"


def depth_table(records: list[dict[str, Any]]) -> str:
    """Return how times grow with the number of layers."""
    (record,) = records
    names = {
        "sensitivities": "sensitivities", "solve, average bits": "solve, bits",
        "solve, bismo-edge": "solve, latency", "cheap evaluation": "cheap evaluation",
    }  # fmt: skip
    steady = "sensitivities", "cheap evaluation"  # integer programs differ by more than by length
    slopes = "; ".join(
        f"{family}: " + ", ".join(f"{name} {values[name]:.1f}" for name in steady)
        for family, values in record["exponents"].items()
    )
    images = record["images"]
    lead = (
        "CPU seconds, and peak memory, by the number of layers (random weights; sensitivities of "
        f"2- to 8-bit weights and activations on {images['sensitivities']} images, evaluations on "
        f"{images['validation']}). Seconds grow with layers to the power of: {slopes}:"
    )
    rows = [
        [row["network"], *(f"{row[name]:.2f}" for name in names), f"{row['peak_mb']:,}"]
        for row in record["rows"]
    ]
    return markdown(lead, ["network", *names.values(), "peak MB"], rows)


def episode_sentence(record: dict[str, Any]) -> str:
    """Return how long one episode takes."""
    return (
        f"One episode of {record['model']} ({record['train_images']} + {record['val_images']} "
        f"images): {record['cpu_seconds']} s of CPU time on {record['threads']} thread(s), the "
        f"machine busy; {record['share_in_the_network']:.0%} of it inside the network's forward "
        "and backward passes."
    )


def workers_table(records: list[dict[str, Any]]) -> str:
    """Return what agents take for an episode, and how busy they keep many workers."""
    (record,) = records
    lead = (
        "What an agent takes for an episode, its solver and the environment included, as a share "
        "of an episode whose evaluation takes one second, with one worker; and the share of the "
        "time in which "
        f"{record['busy'][0]['workers']} workers are busy with such evaluations (times drawn from "
        "a log-normal distribution; one thread for the agent, on a machine that did other work "
        "too). A dash: not measured:"
    )
    networks = list(dict.fromkeys(row["network"] for row in record["alone"]))
    shares = {
        (_player(row), row["network"]): f"{row['share_of_one_second']:.1%}"
        for row in record["alone"]
    }
    busy = {row["agent"]: f"{row['busy']:.1%}" for row in record["busy"]}
    agents = list(dict.fromkeys([*(_player(row) for row in record["alone"]), *busy]))
    rows = [
        [f"`{agent}`", *(shares.get((agent, name), "-") for name in networks),
         busy.get(agent, "-")]
        for agent in agents
    ]  # fmt: skip
    return markdown(lead, ["agent", *networks, "busy"], rows)


def _player(row: dict[str, Any]) -> str:
    return f"{row['agent']} --paper" if row.get("paper") else str(row["agent"])
