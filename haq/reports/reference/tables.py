"""The tables of results in docs/, from the records in ``results/reference``.

python -m haq.reports.reference.tables publish COMMIT RUN ...     copies runs that COMMIT made
python -m haq.reports.reference.tables                            writes the tables
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from haq.errors import HaqError
from haq.files import write_text
from haq.reports.reference.bench import bench_tables
from haq.reports.reference.compression import STUDIES, compression_tables
from haq.reports.reference.coverage import coverage_tables
from haq.reports.reference.finetuning import digits_table, finetuning_table, goals_table
from haq.reports.reference.hardware import ethos_u_table, file_latency_table, ne16_table
from haq.reports.reference.publish import REFERENCE, publish
from haq.reports.reference.quantizers import (
    calibration_tables,
    exports_table,
    profiles_table,
    ptq_table,
    training_sentence,
)
from haq.reports.reference.rivals import minilm_table, rounding_table
from haq.reports.reference.searches import (
    agents_table,
    images_needed_table,
    measured_table,
    neighbours_table,
    searches_table,
    transfers_table,
    trust_region_table,
)
from haq.reports.reference.sensitivities import (
    accuracy_target_table,
    quick_policy_table,
    second_order_table,
)
from haq.reports.reference.service import service_tables
from haq.reports.reference.speed import (
    depth_table,
    episode_sentence,
    original_tables,
    workers_table,
)
from haq.reports.reference.transformers import transformers_tables
from haq.reports.reference.updates import updates_tables
from haq.runs.folder import read_json

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

Records = list[dict[str, Any]]


def results_table() -> str:
    """Return the Markdown of all that is published: training, calibration, episode, searches."""
    records = {path.stem: read_json(path) for path in sorted(REFERENCE.glob("*.json"))}
    parts = []
    for chosen, written in TABLES:
        some = [record for name, record in records.items() if chosen(name, record)]
        parts += [written(some)] if some else []
    return "\n\n".join(parts)


def _named(start: str) -> Callable[[str, dict[str, Any]], bool]:
    return lambda name, record: name.startswith(start)


def _each(written: Callable[[dict[str, Any]], str]) -> Callable[[Records], str]:
    return lambda records: "\n\n".join(written(record) for record in records)


def _is_measured(_: str, record: dict[str, Any]) -> bool:
    return "job" in record and "value" in record.get("measured_latency", {})


def _is_search(_: str, record: dict[str, Any]) -> bool:
    return "job" in record and "value" not in record.get("measured_latency", {})


TABLES: Sequence[tuple[Callable[[str, dict[str, Any]], bool], Callable[[Records], str]]] = (
    (_named("float-"), _each(training_sentence)),
    (_named("train-"), _each(training_sentence)),
    (_named("calibration-"), _each(calibration_tables)),
    (_named("episode-"), _each(episode_sentence)),
    (_is_search, searches_table),
    (_is_measured, measured_table),
    (_named("ptq"), ptq_table),
    (_named("agents"), agents_table),
    (_named("finetuning-goals"), goals_table),
    (lambda name, _: name == "finetuning", finetuning_table),
    (_named("digits-runs"), digits_table),
    (_named("neighbours"), neighbours_table),
    (_named("quick-policy"), quick_policy_table),
    (_named("second-order"), second_order_table),
    (_named("images-needed"), images_needed_table),
    (_named("trust-region"), trust_region_table),
    (_named("workers"), workers_table),
    (_named("accuracy-target"), accuracy_target_table),
    (_named("profile-"), profiles_table),
    (_named("export-"), exports_table),
    (_named("file-latency"), file_latency_table),
    (_named("transfer-"), transfers_table),
    (_named("ne16"), ne16_table),
    (_named("ethos-u"), ethos_u_table),
    (_named("original"), original_tables),
    (_named("depth"), depth_table),
    (lambda name, _: name == "service", service_tables),
)
"""Which records a table is made of, and how it is written, in the order of docs/results.md."""


def write_results(page: Path = Path("docs/results.md")) -> None:
    """Put the tables between the two marks of their page."""
    _put(page, results_table())


def write_updates(page: Path = Path("docs/updates.md")) -> None:
    """Put the tables of packets between the two marks of their page, where there are any."""
    record = REFERENCE / "updates.json"
    if record.exists():
        _put(page, updates_tables(read_json(record)))


def write_compression(page: Path = Path("docs/compression.md")) -> None:
    """Put the tables of compression between the two marks of their page, where there are any."""
    known = studies()
    if known:
        _put(page, compression_tables(known))


def write_transformers(page: Path = Path("docs/networks.md")) -> None:
    """Put the tables of transformers between the two marks of their page, where there are any."""
    tables = of_transformers()
    if tables:
        _put(page, tables)


def of_transformers() -> str:
    """Return the tables of the studies of transformers."""
    paths = [REFERENCE / f"{name}.json" for name in ("minilm", "gpt2")]
    minilm, gpt2 = (read_json(path) if path.exists() else None for path in paths)
    return transformers_tables(minilm, gpt2)


def studies() -> dict[str, dict[str, Any]]:
    """Return the records of the studies of compression, by name, as far as there are any."""
    paths = {name: REFERENCE / f"{name}.json" for name in STUDIES}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def write_bench_page(page: Path = Path("docs/bench.md")) -> None:
    """Put the tables of HAQ-Bench between the two marks of their page, where there are any."""
    text = of_bench()
    if text:
        _put(page, text)


def of_bench() -> str:
    """Return the tables of HAQ-Bench, as far as there are records."""
    return bench_tables({path.stem: read_json(path) for path in REFERENCE.glob("*.json")})


def write_coverage(page: Path = Path("docs/coverage.md")) -> None:
    """Put the table of coverage between the two marks of its page, where there is one."""
    record, islands = REFERENCE / "coverage.json", REFERENCE / "float_islands.json"
    if record.exists():
        more = read_json(islands) if islands.exists() else None
        _put(page, coverage_tables(read_json(record), more))


def write_rivals(page: Path = Path("README.md")) -> None:
    """Put the tables of other tools between the two marks of the first page, if there are any."""
    tables = of_rivals()
    if tables:
        _put(page, tables)


def of_rivals() -> str:
    """Return the tables of HAQ beside other tools, as far as there are records."""
    minilm, ptq, rivals = (REFERENCE / f"{name}.json" for name in ("minilm", "ptq", "rivals"))
    tables = [minilm_table(read_json(minilm))] if minilm.exists() else []
    if ptq.exists() and rivals.exists():
        tables.append(rounding_table(read_json(ptq), read_json(rivals)))
    return "\n\n".join(tables)


def _put(page: Path, tables: str) -> None:
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise HaqError(f"{page} has no {BEGIN} … {END}")
    write_text(page, f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


def main(arguments: Sequence[str]) -> None:
    """Publish the runs named, or write the tables."""
    if arguments[:1] == ["publish"]:
        for run in arguments[2:]:
            publish(run, arguments[1])
    else:
        write_results()
        write_updates()
        write_compression()
        write_transformers()
        write_bench_page()
        write_coverage()
        write_rivals()


if __name__ == "__main__":
    main(sys.argv[1:])
