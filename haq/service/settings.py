"""What the operator of the service decides, and where its files lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from haq.service.limits import Limits

Order = Literal["fair", "oldest"]


class Keep(NamedTuple):
    """For how long runs that are over and uploads are kept, and how much; None for no limit."""

    seconds: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class Settings:
    """The same for the server and its workers.

    Attributes:
        files: The folder of runs and uploads; on several machines a shared one.
        database: URL for SQLAlchemy; a SQLite file in ``files`` where empty.
        data: Name to a data set, as in ``haq search --data``, that users may ask for.
        weights: Name to a file of float weights that users may ask for.
        models: Name to a model with a prefix, as in ``haq search --model``, that users may ask for
            beside those of HAQ.
        lease_s: After how many seconds without a sign of life a run goes to another worker.
        tries: In a row without a new episode, before a run counts as failed.
        pause_s: How long a run waits where the machine, not the run, is at fault.
        poll_s: How often a worker looks for runs, and the server for events.
        stop_s: What a search gets to end by itself before it is killed.
        threads: CPU threads of one search, at most.
        hooks: Hosts, each with its port where it is not the usual one, that may be told when a run
            ends.
        order: Which run is next: "fair", of the user with the fewest runs under way, in turns; or
            "oldest", whoever asked for it.
        limits: For every user.
        keep: What is deleted by itself once it is old, or too much.
    """

    files: Path = Path("haq-files")
    database: str = ""
    data: Mapping[str, str] = field(default_factory=lambda: {"digits": "digits"})
    weights: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    lease_s: float = 30.0
    tries: int = 3
    pause_s: float = 30.0
    poll_s: float = 0.5
    stop_s: float = 5.0
    threads: int = 1
    hooks: tuple[str, ...] = ()
    order: Order = "fair"
    limits: Limits = field(default_factory=Limits)
    keep: Keep = field(default_factory=Keep)

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database or f"sqlite:///{self.files / 'haq.sqlite'}"

    def run_folder(self, run_id: str) -> Path:
        """Return where a run's files lie."""
        return self.files / "runs" / run_id

    def upload_folder(self, upload_id: str) -> Path:
        """Return where an upload's files lie."""
        return self.files / "uploads" / upload_id
