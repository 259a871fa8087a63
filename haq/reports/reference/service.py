"""Markdown of what the service stood."""

from collections.abc import Mapping
from typing import Any

from haq.reports.reference.markdown import markdown

_FAULTS = {
    "postgresql_restarted": "PostgreSQL restarted at once, three times",
    "disk_full": "the disk of files and database full for 12 s",
    "folder_read_only": "the folder of runs read-only when they are taken",
    "clock_forward": "the clock five hours on, and the worker killed",
    "clock_back": "the clock five hours back, and the worker killed",
}
_KILLED = {"server": "of the server", "worker": "of a worker", "search": "of a search"}


def service_tables(records: list[dict[str, Any]]) -> str:
    """Return how runs came out whatever happened, and how strangers were answered."""
    (record,) = records
    parts = []
    if "kills" in record or "faults" in record:
        parts.append(_runs(record))
    if "hostile" in record:
        parts.append(_strangers(record["hostile"]))
    return "\n\n".join(parts)


def _runs(record: Mapping[str, Any]) -> str:
    lead = (
        "The service under faults: real searches (DDPG on a small network, every policy "
        "fine-tuned), three seeds at a time, two workers in the kills; a run counts where it was "
        "finished once, its events have no gap, every episode is told once, and its trials are "
        "those of a search of that seed that nothing happened to:"
    )
    rows = []
    if "kills" in record:
        kills = record["kills"]
        killed = [f"{kills['killed'].get(name, 0)} {said}" for name, said in _KILLED.items()]
        rows.append(
            [f"{kills['kills']} kills -9 at random moments: {', '.join(killed)}", *_cells(kills)]
        )
    faults = record.get("faults", {})
    rows += [[said, *_cells(faults[name])] for name, said in _FAULTS.items() if faults.get(name)]
    return markdown(lead, ["what happened", "runs", "finished once", "as undisturbed"], rows)


def _cells(row: Mapping[str, Any]) -> list[str]:
    once = min(row[name] for name in ("finished", "events_without_gap", "each_episode_once"))
    return [str(row["runs"]), str(once), str(row["as_undisturbed"])]


def _strangers(row: Mapping[str, Any]) -> str:
    return (
        f"{row['requests']} hostile requests of {row['kinds']} kinds, eight at once, beside "
        f"{row['held_connections']:,} connections that send or read next to nothing: "
        f"{row['answers_of_500_and_above']} answers of 500 and above, "
        f"{row['internal_errors_logged']} internal errors; `/healthz` was asked "
        f"{row['healthz_asked']:,} times, {row['healthz_failed']} without an answer, "
        f"{row['healthz_over_one_second']} after more than a second, the slowest "
        f"after {row['healthz_slowest_s']:.2f} s (median {1000 * row['healthz_median_s']:.0f} ms, "
        f"load of the machine {row['load']:.1f} on {row['cores']} cores)."
    )
