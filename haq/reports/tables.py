"""Publish runs: copy what they found into ``results/reference``, and from there into the README.

python -m haq.reports.tables publish COMMIT RUN ...     copies runs that COMMIT made
python -m haq.reports.tables                     writes the README's table
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from haq.errors import HaqError
from haq.files import write_text
from haq.runs import folder as results

REFERENCE = Path("results/reference")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

TITLES = {"cifar10": "CIFAR-10 (JPEG)", "digits": "digits"}
"""Data sets as they are named beside numbers: these CIFAR-10 images were encoded anew as JPEG."""

_KEPT = (
    "state", "float_val_accuracy", "float_test_accuracy", "best_episode", "episode_val_accuracy",
    "episode_test_accuracy", "final_val_accuracy", "final_test_accuracy", "episodes",
    "evaluations", "evaluation_seconds", "seconds_per_evaluation", "finish_seconds", "budgets",
    "cost", "cost_origin", "measured_latency", "units", "threads", "provenance",
)  # fmt: skip


def publish(run: str, commit: str) -> Path:
    """Copy the job, policy and figures of a finished run into ``results/reference``.

    Args:
        run: Name or folder.
        commit: Of the code that made it.
    """
    folder = results.find_folder(run)
    summary = results.read_json(folder / "summary.json")
    if summary["state"] != "finished":
        raise HaqError(f"run {run} is {summary['state']}; only finished runs are published")
    job = results.read_job(folder).model_dump(mode="json")
    job["data"] = job["data"].partition(":")[0]
    for file in ("weights", "target"):
        job[file] = Path(job[file]).name if job[file] else None
    summary["provenance"]["command"] = without_folders(summary["provenance"]["command"])
    trials = results.read_trials(folder)
    record = {
        "run": folder.name,
        "commit": commit,
        "job": job,
        **{key: summary[key] for key in _KEPT if key in summary},
        "policy": {row["name"]: [row["weight_bits"], row["act_bits"]] for row in summary["layers"]},
        "trials": [
            {"accuracy": t.accuracy, "reward": t.reward, "seconds": t.seconds, "cached": t.cached}
            for t in trials
        ],
    }
    path = REFERENCE / f"{folder.name}.json"
    results.write_json(path, record)
    return path


def without_folders(command: str) -> str:
    """Return the command without the folders of one machine."""
    words = re.sub(r":[^ ]*/[^ ]*", ":DIR", command)  # cifar10:/some/where
    return re.sub(r"(?<![^ =])[^ =]*/", "", words)


def script_provenance() -> dict[str, Any]:
    """Return what makes the record of a script of ``results/benchmarks`` that runs now.

    As ``haq.runs.folder.provenance``, without the folders of this machine.
    """
    made = results.provenance(sys.argv)
    return made | {"command": "python results/benchmarks/" + without_folders(made["command"])}


def results_table() -> str:
    """Return the Markdown of all that is published: training, calibration, episode, searches."""
    records = {path.stem: results.read_json(path) for path in sorted(REFERENCE.glob("*.json"))}
    parts = [_training(records[name]) for name in records if name.startswith("train-")]
    parts += [_calibration(records[name]) for name in records if name.startswith("calibration-")]
    parts += [_episode(records[name]) for name in records if name.startswith("episode-")]
    runs = [record for record in records.values() if "job" in record]
    clocked = [record for record in runs if "value" in record.get("measured_latency", {})]
    parts.append(_searches([record for record in runs if record not in clocked]))
    parts += [_clocked(clocked)] if clocked else []
    several = {
        "ptq": _ptq, "agents": _agents, "neighbours": _neighbours, "profile-": _profiles,
        "export-": _exports, "transfer-": _transfers, "original": _original, "depth": _depth,
    }  # fmt: skip
    for start, made in several.items():
        some = [record for name, record in records.items() if name.startswith(start)]
        parts += [made(some)] if some else []
    return "\n\n".join(parts)


def _markdown(lead: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a sentence and a table below it; all columns but the first are numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|---|" + "---:|" * (len(head) - 1)
    return "\n".join([lead, "", "| " + " | ".join(head) + " |", rule, *lines])


def _clocked(records: list[dict[str, Any]]) -> str:
    lead = (
        "Searches on a profile of this CPU. The winner was built and measured end to end before it "
        "was declared one (microseconds for one image, one thread; test accuracy of the network "
        "handed over):"
    )
    rows = []
    for record in records:
        times, job = record["measured_latency"], record["job"]
        rows.append(
            [
                f"{job['model']}, {' and '.join(job['budgets'])}", job["agent"],
                f"{times['predicted']:,.0f}",
                f"{times['value']:,.0f} ({times['low']:,.0f} to {times['high']:,.0f})",
                f"{times['budget']:,.0f}", times["how"], f"{record['float_test_accuracy']:.2%}",
                f"{record['final_test_accuracy']:.2%}",
            ]
        )  # fmt: skip
    head = [
        "network, budgets", "agent", "predicted", "measured (95 %)", "budget", "winner",
        "float: test", "found: test",
    ]  # fmt: skip
    return _markdown(lead, head, rows)


def _ptq(records: list[dict[str, Any]]) -> str:
    (record,) = records
    images = record["images"]
    lead = (
        f"Weights of {record['model']} in few bits without fine-tuning and without labels, test "
        "accuracy (average bits over all layers, allocated by sensitivities; activations float). "
        f"*corrected*: statistics of {images['statistics']} images; *learned*: also the rounding, "
        f"on {images['rounding']} images; *folded*: the network without BatchNorm:"
    )
    rows = [row for row in record["rows"] if row["method"] != "float"]
    table = [
        [
            row["network"], row["method"], f"{row['avg_weight_bits']:g}",
            f"{row['test_accuracy']:.2%}", f"{row['cpu_seconds']:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    floats = next(row for row in record["rows"] if row["method"] == "float")
    table.insert(0, ["as it is", "float", "32", f"{floats['test_accuracy']:.2%}", "0"])
    return _markdown(lead, ["network", "method", "bits", "test", "CPU seconds"], table)


def _agents(records: list[dict[str, Any]]) -> str:
    (record,) = records
    lead = (
        "Agents under the same budget with 40 cheap evaluations each (statistics corrected, no "
        "fine-tuning). Their three best policies, and the first one of `ilp` and `guided`, got an "
        "epoch of 5000 images, and the best of these on validation images is tested: after that "
        "epoch, and the best policy of all without it. *Divergence*: the least one from the float "
        "network on validation images, before fine-tuning. Means over the seeds, with the lowest "
        "and the highest; seconds on one thread of a busy machine, without tests and the reading "
        "of data. The float network was trained on the validation images too, so only test "
        "columns compare with other work:"
    )
    head = [
        "network, budget", "agent", "seeds", "divergence", "test after the epoch", "test without",
        "CPU seconds", "wall seconds", "peak MB",
    ]  # fmt: skip
    searches: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        budget = " ".join(filter(None, [row["target"], row["budget"], _acts(row["act_bits"])]))
        key = f"{row['model']}{_width(row)}, {budget}", row["agent"]
        searches.setdefault(key, []).append(row)
    rows = []
    for (budget, agent), some in sorted(searches.items()):
        timed = [row for row in some if row["cpu_seconds"] is not None]
        rows.append(
            [
                budget, f"`{agent}`" + (" (paper)" if agent == "ddpg" else ""), str(len(some)),
                _spread([row["best"]["val_loss"] for row in some], ".3f"),
                _spread([row["test_accuracy"] for row in some], ".2%"),
                _spread([row["untuned_test_accuracy"] for row in some], ".2%"),
                f"{mean([row['cpu_seconds'] for row in timed]):.0f}" if timed else "-",
                f"{mean([row['wall_seconds'] for row in timed]):.0f}" if timed else "-",
                f"{max(row['peak_memory_mb'] for row in some):,}",
            ]
        )  # fmt: skip
    return _markdown(lead, head, rows)


def _spread(values: Sequence[float], form: str) -> str:
    shown = format(mean(values), form)
    if len(values) == 1:
        return shown
    return f"{shown} ({format(min(values), form)} to {format(max(values), form)})"


def _neighbours(records: list[dict[str, Any]]) -> str:
    (record,) = records
    lead = (
        "What the sensitivities leave to be learned: policies around their optimum, each scored by "
        "its divergence from the float network on two halves of the validation images. Rank "
        "correlations of the sum of the sensitivities with the divergence, and of what the sum "
        "leaves unexplained in one half with that in the other; and how much lower than the "
        "optimum's the divergence of the policy that is best on one half is on the other:"
    )
    head = [
        "budget", "policies", "sum and divergence", "unexplained, half and half", "optimum",
        "best of them", "gain",
    ]  # fmt: skip
    rows = []
    for row in record["rows"]:
        optimum, best = row["optimum"][1], row["best"]["there"]
        rows.append(
            [
                " ".join(filter(None, [row["target"], row["budget"], _acts(row["act_bits"])])),
                str(row["policies"]), f"{row['sum_with_divergence']:.2f}",
                f"{row['unexplained_half_with_half']:.2f}", f"{optimum:.4f}", f"{best:.4f}",
                f"{1 - best / optimum:.0%}",
            ]
        )  # fmt: skip
    return _markdown(lead, head, rows)


def _acts(bits: int | None) -> str:
    return "" if bits is None else f"a{bits}"


def _profiles(records: list[dict[str, Any]]) -> str:
    lead = (
        "Profiles measured in ONNX Runtime, and how well they predict the latency of policies "
        "that the fit had not seen (one image at a time; the machine was busy):"
    )
    head = [
        "network", "threads", "float us", "w8a8 us", "policies", "mean error", "worst",
        "rank correlation", "seconds",
    ]  # fmt: skip
    rows = []
    for record in records:
        unseen, times = record["unseen_policies"], record["latency_us"]
        rows.append(
            [
                record["model"], str(record["options"]["threads"]),
                f"{times['fp32']['value']:,.0f}", f"{times['w8a8']['value']:,.0f}",
                str(unseen["policies"]), f"{unseen['mean_error']:.1%}",
                f"{unseen['worst_error']:.1%}", f"{unseen['rank_correlation']:.3f}",
                f"{record['wall_seconds']:.0f}",
            ]
        )  # fmt: skip
    return _markdown(lead, head, rows)


def _exports(records: list[dict[str, Any]]) -> str:
    lead = (
        "Exported files in ONNX Runtime: accuracy on all test images there and in PyTorch, equal "
        "answers, images whose logits equal the file's integers worked out in numpy bit for bit, "
        "and latency beside the float network and ONNX Runtime's own 8-bit `quantize_static` (one "
        "image, one thread, interleaved; no fine-tuning):"
    )
    head = [
        "network", "kB", "ONNX Runtime", "PyTorch", "equal answers", "equal to the bit", "us",
        "of float", "of quantize_static",
    ]  # fmt: skip
    rows = []
    for record in records:
        for row in record["rows"]:
            own = row["latency_us"]["this"]
            rows.append(
                [
                    f"{record['model']} {row['policy']}", f"{row['bytes'] / 1000:.0f}",
                    f"{row['onnxruntime_test_accuracy']:.2%}", f"{row['torch_test_accuracy']:.2%}",
                    f"{row['top1_agreement']:.2%}",
                    f"{row['images_equal_to_the_last_bit']} of {row['simulated_images']}",
                    f"{own:,.0f}", f"{own / row['latency_us']['fp32']:.2f}",
                    f"{own / row['latency_us']['quantize_static']:.2f}",
                ]
            )  # fmt: skip
    return _markdown(lead, head, rows)


def _transfers(records: list[dict[str, Any]]) -> str:
    lead = (
        "Policies found for one target within a share of its latency at 8 bits, the mean bits "
        "(weights / activations) that they give to depthwise and pointwise layers, and what they "
        "cost on each target as a share of its latency at 8 bits:"
    )
    targets = list(records[0]["rows"][0]["latency_share_of_w8a8"])
    head = ["network, found for", "depthwise", "pointwise", *(f"on {name}" for name in targets)]
    rows = [
        [
            f"{record['model']} ({record['width']:g}), {row['found_for']}",
            *(_pair(row["mean_bits"][kind]) for kind in ("depthwise", "pointwise")),
            *(f"{row['latency_share_of_w8a8'][name]:.1%}" for name in targets),
        ]
        for record in records for row in record["rows"] if row["policy"]
    ]  # fmt: skip
    return _markdown(lead, head, rows)


def _pair(bits: dict[str, float] | None) -> str:
    return "-" if bits is None else f"{bits['weights']:.1f} / {bits['activations']:.1f}"


def _original(records: list[dict[str, Any]]) -> str:
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
    found = [
        [
            f"activations {row['activations']}, {row['method']}", f"{row['test_accuracy']:.2%}",
            f"{row['cpu_seconds']:.0f}", f"{row['ratio_to_reported']:.0f}",
            f"{row['ratio_to_episodes_timed_here']:.0f}",
        ]
        for row in record["to_a_policy"]
    ]  # fmt: skip
    columns = ["policy", "test", "CPU seconds", "reported takes times", "episodes take times"]
    return _markdown(lead, head, rows) + "\n\n" + _markdown(then, columns, found)


_SLOW = ("original, linear", "original, size")


def _times(record: dict[str, Any], slow: str, fast: str) -> str:
    ratio = record["ratios"].get(f"{slow} / {fast}")
    if ratio is None:
        return "-"
    return f"{ratio['median']:.1f} ({ratio['lowest']:.1f} to {ratio['highest']:.1f})"


def _depth(records: list[dict[str, Any]]) -> str:
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
    return _markdown(lead, ["network", *names.values(), "peak MB"], rows)


def _training(record: dict[str, Any]) -> str:
    return (
        f"Float network: {record['model']}{_width(record)} on {TITLES[record['data']]}, "
        f"{record['epochs']} epochs of the 45 000 training rows: validation "
        f"{record['val_accuracy']:.2%}, test {record['test_accuracy']:.2%}."
    )


def _width(record: dict[str, Any]) -> str:
    return f" (width {record['width']:g})" if record.get("width", 1) != 1 else ""


def _calibration(record: dict[str, Any]) -> str:
    lines = [
        f"Accuracy of {record['model']} on {record['validation_images']} validation images right "
        f"after quantization, without any fine-tuning (float {record['float']:.2%}; first and last "
        "layer at 8 bits):",
        "",
    ]
    for what, methods in record["accuracy"].items():
        widths = list(next(iter(methods.values())))
        lines += [
            f"| {what}, bits | " + " | ".join(widths) + " |",
            "|---|" + "---:|" * len(widths),
            *(
                f"| `{method}` | " + " | ".join(f"{row[bits]:.2%}" for bits in widths) + " |"
                for method, row in methods.items()
            ),
            "",
        ]
    return "\n".join(lines).rstrip()


def _episode(record: dict[str, Any]) -> str:
    return (
        f"One episode of {record['model']} ({record['train_images']} + {record['val_images']} "
        f"images): {record['cpu_seconds']} s of CPU time on {record['threads']} thread(s), the "
        f"machine busy; {record['share_in_the_network']:.0%} of it inside the network's forward "
        "and backward passes."
    )


def _searches(records: list[dict[str, Any]]) -> str:
    records.sort(key=lambda r: [str(r["job"][key]) for key in ("target", "budgets", "agent")])
    lines = [
        "Searches from that float network; one seed, 5 000 training and 2 500 validation images an "
        "episode, one thread of a busy machine. *Drop* is in points of test accuracy, from the "
        "float network to the end. *uniform* is the best of the same bits everywhere, lowered from "
        "the last layer on until they keep the budget. Each record names the commit that made it.",
        "",
        "| target | budget | agent | policies evaluated | achieved | after its epoch: test (val) "
        "| after one epoch of all: test (val) | drop | s per evaluation |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(_row(record) for record in records)])


def _row(record: dict[str, Any]) -> str:
    job, budget = record["job"], record["budgets"][0]
    acts = "" if job["act_bits"] is None else f", {job['act_bits']}-bit activations"
    drop = 100 * (record["float_test_accuracy"] - record["final_test_accuracy"])
    cells = [
        job["target"] or "-",
        f"{budget['asked']}{acts}",
        job["agent"] + (" (paper)" if job["paper"] else ""),
        str(record["evaluations"]),
        f"{budget['achieved']:,.4g} of {budget['limit']:,.4g} {budget['unit']}",
        f"{record['episode_test_accuracy']:.2%} ({record['episode_val_accuracy']:.2%})",
        f"{record['final_test_accuracy']:.2%} ({record['final_val_accuracy']:.2%})",
        f"{drop:.2f}",
        f"{record['seconds_per_evaluation']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def write_readme(readme: Path = Path("README.md")) -> None:
    """Put the table between the README's two marks."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise HaqError(f"{readme} has no {BEGIN} … {END}")
    write_text(readme, f"{before}{BEGIN}\n\n{results_table()}\n\n{END}{after}")


def main(arguments: Sequence[str]) -> None:
    """Publish the runs named, or write the README's table."""
    if arguments[:1] == ["publish"]:
        for run in arguments[2:]:
            publish(run, arguments[1])
    else:
        write_readme()


if __name__ == "__main__":
    main(sys.argv[1:])
