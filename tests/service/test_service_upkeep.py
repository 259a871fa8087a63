"""Backups, restored right after a crash; and what is kept for how long."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from service_parts import Visitor, opened, run_of
from sqlalchemy import update

from haq.errors import HaqError
from haq.runs.job import Job
from haq.service import backup, place, retention, security, store
from haq.service.database import connect, migrate
from haq.service.limits import Limits, limits_of
from haq.service.serve import Bounds, keep_of, settings_of
from haq.service.settings import Keep, Settings
from haq.service.store.rows import GONE
from haq.service.tables import RUNS, UPLOADS, now
from haq.service.upkeep import cleaned

JOB = Job(episodes=3)


def done(engine, settings, size=10, owner="ada", age_s=0.0):
    """Return the id of a finished run, with a file of so many bytes."""
    run_id = run_of(engine, JOB, owner=owner)
    run = store.claim(engine, "worker", 60, 3)
    folder = settings.run_folder(run_id)
    folder.mkdir()
    (folder / "policy.json").write_bytes(bytes(size))
    store.finish(engine, store.Lease(run_id, run.fence))
    with engine.begin() as connection:
        moved = RUNS.c.finished - age_s
        connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(finished=moved))
    return run_id


def states(engine):
    return {run.id: (run.state, run.events) for run in store.listed(engine)}


# --- backup and restore ----------------------------------------------------------------------


def test_what_is_restored_is_what_was_backed_up(tmp_path, database):
    settings, engine = opened(tmp_path, database)
    finished, waiting = done(engine, settings), run_of(engine, JOB)
    token = security.create_token(engine, "ada")
    copied = backup.backup(settings, tmp_path / "backup")
    assert (copied.runs, copied.uploads) == (2, 0)
    with engine.begin() as connection:  # as after the loss of all of it
        for table in reversed(backup.METADATA.sorted_tables):
            connection.execute(table.delete())
    empty = Settings(tmp_path / "new", database)
    assert backup.restore(empty, tmp_path / "backup") == copied._replace(size_bytes=10)
    assert states(engine) == {finished: ("finished", 3), waiting: ("queued", 1)}
    assert [event.number for event in store.events_after(engine, finished, 0)] == [1, 2, 3]
    assert security.by_token(engine, token)[0].name == "ada"
    assert place.missing(empty, migrate(engine)) is None
    assert (empty.run_folder(finished) / "policy.json").read_bytes() == bytes(10)
    assert store.claim(engine, "worker", 60, 3).id == waiting


CRASH = """
    import os, signal, sys
    from pathlib import Path
    from haq.runs.job import Job
    from haq.service import place, store
    from haq.service.database import connect, migrate
    from haq.service.settings import Settings
    settings = Settings(Path(sys.argv[1]))
    engine = connect(settings.url)
    place.prepare(settings, migrate(engine))
    for number in range(20):
        store.submit(engine, "ada", Job(episodes=3), f"run {number}")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_backup_holds_what_a_killed_server_left_in_its_log(tmp_path):
    files = tmp_path / "files"
    words = [sys.executable, "-c", textwrap.dedent(CRASH), str(files)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    wal = files / "haq.sqlite-wal"
    assert wal.stat().st_size > 0  # committed, and not yet in the database's own file
    backup.backup(Settings(files), tmp_path / "backup")
    assert sorted(os.listdir(tmp_path / "backup")) == ["haq.sqlite", "runs", "uploads"]
    backup.restore(Settings(tmp_path / "new"), tmp_path / "backup")
    titles = {run.title for run in store.listed(connect(Settings(tmp_path / "new").url))}
    assert titles == {f"run {number}" for number in range(20)}


def test_a_later_backup_is_as_if_there_had_been_none_before(tmp_path):
    settings, engine = opened(tmp_path)
    old, changed = done(engine, settings), done(engine, settings, size=20)
    backup.backup(settings, tmp_path / "backup")
    store.hide(engine, old)
    (settings.run_folder(changed) / "more").mkdir()
    (settings.run_folder(changed) / "more" / "trials.jsonl").write_text("{}\n")
    (settings.run_folder(changed) / "policy.json").unlink()
    new = done(engine, settings)
    assert backup.backup(settings, tmp_path / "backup").runs == 2
    assert {path.name for path in (tmp_path / "backup" / "runs").iterdir()} == {changed, new}
    left = [path for path in (tmp_path / "backup" / "runs" / changed).rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["trials.jsonl"]


def test_a_run_deleted_while_it_is_copied_is_left_out(tmp_path, monkeypatch):
    settings, engine = opened(tmp_path)
    gone, stays = done(engine, settings), done(engine, settings)
    copy_files = backup._copy_files

    def slow(*arguments):
        store.hide(engine, gone)
        retention.sweep(engine, settings)
        return copy_files(*arguments)

    monkeypatch.setattr(backup, "_copy_files", slow)
    assert backup.backup(settings, tmp_path / "backup").runs == 1
    monkeypatch.undo()
    backup.restore(Settings(tmp_path / "new"), tmp_path / "backup")
    assert list(states(connect(Settings(tmp_path / "new").url))) == [stays]


def test_a_backup_that_is_broken_off_is_the_one_before_it(tmp_path, monkeypatch):
    settings, engine = opened(tmp_path)
    first = done(engine, settings)
    backup.backup(settings, tmp_path / "backup")
    done(engine, settings)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "_mirror", full)
    with pytest.raises(HaqError, match="backup: no space left on device; what was there before"):
        backup.backup(settings, tmp_path / "backup")
    monkeypatch.undo()
    backup.restore(Settings(tmp_path / "new"), tmp_path / "backup")
    assert list(states(connect(Settings(tmp_path / "new").url))) == [first]


def test_a_backup_replaces_no_service(tmp_path):
    settings, engine = opened(tmp_path)
    done(engine, settings)
    backup.backup(settings, tmp_path / "backup")
    with pytest.raises(HaqError, match="the database holds runs already: restore"):
        backup.restore(settings, tmp_path / "backup")
    other = Settings(settings.files, f"sqlite:///{tmp_path}/empty.sqlite")
    with pytest.raises(HaqError, match="files holds runs already: restore"):
        backup.restore(other, tmp_path / "backup")
    with pytest.raises(HaqError, match="files is the folder of a service: haq service backup"):
        backup.restore(Settings(tmp_path / "new"), settings.files)
    with pytest.raises(HaqError, match="nothing holds no backup: haq service backup writes one"):
        backup.restore(Settings(tmp_path / "new"), tmp_path / "nothing")


# --- what is kept ----------------------------------------------------------------------------

DAY_S = 86_400.0


def test_what_is_too_old_goes_and_what_is_under_way_or_published_stays(tmp_path):
    settings, engine = opened(tmp_path)
    old, new = done(engine, settings, age_s=91 * DAY_S), done(engine, settings, age_s=89 * DAY_S)
    published = done(engine, settings, age_s=91 * DAY_S)
    store.publish(engine, "ada", "door", published)
    waiting = run_of(engine, JOB)
    keep = Keep(seconds=90 * DAY_S)
    assert [one.id for one in retention.clean(engine, settings, keep, dry=True)] == [old]
    assert settings.run_folder(old).exists()
    assert [one.id for one in retention.clean(engine, settings, keep)] == [old]
    assert set(states(engine)) == {new, published, waiting}
    assert not settings.run_folder(old).exists()


def test_a_run_that_is_queued_again_while_others_are_looked_at_stays(tmp_path, monkeypatch):
    settings, engine = opened(tmp_path)
    run_id = run_of(engine, JOB)
    store.cancel(engine, run_id)
    with engine.begin() as connection:
        connection.execute(update(RUNS).values(finished=0.0))

    def queued_again(folder):
        if store.find(engine, run_id).state == "cancelled":
            store.retry(engine, run_id)
        return 0

    monkeypatch.setattr(place, "size_of", queued_again)
    assert retention.clean(engine, settings, Keep(seconds=1.0)) == []
    assert store.find(engine, run_id).state == "queued"


def test_of_too_much_the_oldest_goes(tmp_path):
    settings, engine = opened(tmp_path)
    runs = [done(engine, settings, size=1000, age_s=age) for age in (1.0, 3.0, 2.0)]
    gone = retention.clean(engine, settings, Keep(size_bytes=2000))
    assert [one.id for one in gone] == [runs[1]]
    assert retention.clean(engine, settings, Keep(size_bytes=2000)) == []


def test_an_upload_goes_once_no_run_needs_it(tmp_path):
    settings, engine = opened(tmp_path)
    upload_id = "a" * 32
    settings.upload_folder(upload_id).mkdir()
    with engine.begin() as connection:
        connection.execute(UPLOADS.insert().values(
            id=upload_id, owner="ada", kind="data", name="pets", size_bytes=1, sha256="",
            classes=2, images=8, stored_bytes=1, created=now() - 99 * DAY_S,
        ))  # fmt: skip
    run_id = run_of(engine, Job(data=f"upload:{upload_id}", episodes=3))
    keep = Keep(seconds=90 * DAY_S)
    assert retention.clean(engine, settings, keep) == []
    store.cancel(engine, run_id)
    assert [one.name for one in retention.clean(engine, settings, keep)] == ["pets"]
    assert not settings.upload_folder(upload_id).exists()


def test_a_worker_cleans_by_itself_where_that_is_asked_for(tmp_path):
    settings, engine = opened(tmp_path, keep=Keep(seconds=1.0))
    done(engine, settings, age_s=2.0)
    retention.Retention(engine, settings).look()
    assert states(engine) == {} and store.hidden(engine) == []


def test_without_a_limit_nothing_is_cleaned(tmp_path):
    settings, engine = opened(tmp_path)
    run_id = done(engine, settings, age_s=1e9)
    retention.Retention(engine, settings).look()
    assert list(states(engine)) == [run_id]
    with pytest.raises(HaqError, match="say what is kept: --older-than 90d, --down-to 50GB"):
        cleaned(settings, keep_of(None, None), dry=False)


def test_each_line_says_what_is_deleted(tmp_path):
    settings, engine = opened(tmp_path)
    run_id = done(engine, settings, size=2_500_000, age_s=1.5 * DAY_S)
    [line] = cleaned(settings, keep_of("1d", None), dry=True)
    assert line == f"run     {run_id}     1.5 d         2.5 MB  ada: a run"
    assert store.find(engine, run_id).state != GONE


# --- limits ----------------------------------------------------------------------------------


def test_limits_are_written_with_units():
    changed = limits_of(["run_s=12h", "stored_bytes=5GB", "waiting=7", "upload_rate_bytes=64 kB"])
    assert (changed.run_s, changed.stored_bytes, changed.waiting) == (43_200, 5 * 10**9, 7)
    assert changed.upload_rate_bytes == 64_000
    assert limits_of([]) == Limits()


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("run_s", "limit 'run_s': write NAME=VALUE"),
        ("runs=3", "unknown limit 'runs'"),
        ("waiting=0", "limit waiting '0': give a number from 1 on (no unit)"),
        ("waiting=3d", "limit waiting '3d'"),
        ("run_s=-1h", "limit run_s '-1h': give a number from 1 on (s, min, h, d)"),
        ("run_s=nan", "limit run_s 'nan'"),
        ("stored_bytes=1e9", "limit stored_bytes '1e9': give a number from 1 on (kB, MB, GB, TB)"),
        ("stored_bytes=9999999TB", "limit stored_bytes"),
        ("waiting=" + "9" * 5000, "limit waiting"),
    ],
)
def test_what_is_no_limit_is_said(text, sentence):
    with pytest.raises(HaqError) as caught:
        limits_of([text])
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"lease_s": float("nan")}, "lease nan: give 2 to 600 seconds"),
        ({"lease_s": 1.9}, "lease 1.9: give 2 to 600 seconds"),
        ({"lease_s": 601.0}, "lease 601: give 2 to 600 seconds"),
        ({"order": "fare"}, "unknown order 'fare'; did you mean 'fair'"),
        ({"bounds": Bounds(keep_for="soon")}, "keep for 'soon': give a number from 1 on"),
        ({"bounds": Bounds(keep_bytes="1PB")}, "keep bytes '1PB': give a number from 1 on"),
    ],
)
def test_what_is_no_setting_is_said(tmp_path, options, sentence):
    with pytest.raises(HaqError) as caught:
        settings_of(tmp_path, None, **options)
    assert str(caught.value).startswith(sentence)


def test_a_user_whose_files_take_too_much_begins_nothing_more(tmp_path):
    visitor = Visitor(tmp_path, is_open=False, limits=Limits(stored_bytes=1000))
    run_id = done(visitor.engine, visitor.settings, size=1000)
    store.weigh(visitor.engine, run_id, 1000)
    asked = {"model": "digits_cnn", "budgets": ["avg_weight_bits=4"], "episodes": 3}
    answer = visitor.as_user("ada").post("/v1/runs", json=asked)
    assert answer.status_code == 413
    assert (
        answer.json()["message"]
        == "your uploads and runs take 1000 bytes already; delete some first"
    )
    assert visitor.as_user("bob").post("/v1/runs", json=asked).status_code == 201
