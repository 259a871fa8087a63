"""Markdown of HAQ-Bench: its surrogates, which reward ranks, and which agent for which budget."""

from typing import Any

from haq.reports.reference.bench_judged import agents_of, judged_tables
from haq.reports.reference.markdown import markdown, spread

Record = dict[str, Any]


def bench_tables(records: dict[str, Record]) -> str:
    """Return the tables of the page, of those records that there are."""
    rows = records.get("haq-bench", {}).get("rows", [])
    data = {row["table"]: f"{row['table']}, {row['data']}" for row in rows}
    parts = []
    if rows:
        parts.append(surrogates_table(records["haq-bench"]))
    if "bench-agents" in records:
        parts.append(bench_agents_tables(records["bench-agents"], data))
    if "bench-judged" in records:
        parts.append(judged_tables(records["bench-judged"], data))
    if "ranking" in records:
        parts.append(ranking_table(records["ranking"]))
    return "\n\n".join(parts)


def surrogates_table(record: Record) -> str:
    """Return how well policies are predicted that a surrogate was not fitted on."""
    lead = (
        "Surrogates on policies that they were not fitted on: mean error of the logarithm of the "
        "divergence, rank correlation with it over all policies, and among the best of doubted "
        "sensitivities and their neighbours under each budget (lowest to highest), beside the sum "
        "of the sensitivities there; mean error of the accuracy, in points:"
    )
    rows = []
    for row in record["rows"]:
        near = [one["near_the_optimum"] for one in row["settings"].values()]
        sums = [one["sum_of_sensitivities_near_the_optimum"] for one in row["settings"].values()]
        rows.append([
            f"{row['table']}, {row['data']}", f"{row['policies']:,}",
            f"{row['divergence']['mean_error_of_logarithm']:.3f}",
            f"{row['divergence']['rank_correlation']:.3f}", spread(near, ".2f"),
            spread(sums, ".2f"), f"{100 * row['accuracy']['mean_error']:.2f}",
        ])  # fmt: skip
    head = [
        "table", "policies", "error of log", "rank", "rank near the optimum", "sum near it",
        "accuracy",
    ]  # fmt: skip
    return markdown(lead, head, rows)


def bench_agents_tables(record: Record, titles: dict[str, str]) -> str:
    """Return the divergence that each agent ends with, and what it costs.

    Args:
        record: What was played.
        titles: Name of a table to what it is called.
    """
    parts = []
    for table in dict.fromkeys(row["table"] for row in record["played"]):
        played = [row for row in record["played"] if row["table"] == table]
        settings = list(dict.fromkeys(row["setting"] for row in played))
        lead = (
            f"Least divergence that agents find on the table of {titles.get(table, table)}; "
            "policies that are not in it are answered by its surrogate; 200 episodes each, mean of "
            "the seeds with lowest and highest (`ilp` 1 and `uniform` 2 episodes; *optimum*: the "
            "best that integer programming over the surrogate and a climb find, not proven to be "
            "the best); CPU seconds of all episodes of a search, and the most memory that its "
            "process ever had, with the interpreter, the table and its surrogates:"
        )
        rows = []
        for agent in agents_of(played):
            cells = [agent]
            for setting in settings:
                mine = [
                    row["divergence"] for row in played
                    if (row["agent"], row["setting"]) == (agent, setting)
                ]  # fmt: skip
                cells.append(spread(mine, ".4f") if mine else "")
            seconds = [row["cpu_seconds"] for row in played if row["agent"] == agent]
            peaks = [row["peak_memory_mb"] for row in played
                     if row["agent"] == agent and "peak_memory_mb" in row]  # fmt: skip
            peak = format(max(peaks), ",") if peaks else ""
            rows.append([*cells, spread(seconds, ".1f"), peak])
        parts.append(markdown(lead, ["agent", *settings, "CPU seconds", "peak MB"], rows))
    return "\n\n".join(parts)


def ranking_table(record: Record) -> str:
    """Return how rewards rank policies, by what becomes of them in an epoch of their own."""
    lead = (
        "Rank correlation of what is known of a policy before its own epoch of training with the "
        "divergence after it, on images that nothing else saw (95 % interval; 1 is the order "
        "itself), and on all validation images, which is less noisy:"
    )
    head = ["reward"] + [
        f"{row['model']}, {row['data']}, {row['setting']}, {row['count']} {row['policies']}"
        for row in record["rows"]
    ]
    rows = []
    for name in record["mean_correlation"]:
        cells = [row["candidates"].get(name) for row in record["rows"]]
        rows.append([
            name,
            *(
                "" if one is None
                else f"{one['correlation']:.2f} ({one['interval'][0]:.2f} to "
                f"{one['interval'][1]:.2f}); {one['all_images']:.2f}"
                for one in cells
            ),
        ])  # fmt: skip
    return markdown(lead, head, rows)
