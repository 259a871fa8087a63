"""The rows of runs, in SQLite and PostgreSQL: each write one transaction, fenced by the lease."""

import json
import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import MetaData, Table, update
from sqlalchemy.exc import OperationalError

from haq.errors import HaqError
from haq.runs.job import Job
from haq.service import store
from haq.service.database import _config, check_current, connect, migrate, reading
from haq.service.store.leases import Lease, LeaseLost, Progress
from haq.service.store.rows import Conflict
from haq.service.tables import METADATA, RUNS

JOB = Job(episodes=3)


@pytest.fixture
def engine(database):
    made = connect(database)
    migrate(made)
    yield made
    made.dispose()


def new_run(engine, **changes):
    run, _ = store.submit(engine, **{"owner": "ada", "job": JOB, "title": "a run", **changes})
    return run.id


def claimed(engine, lease_s=60.0, tries=3):
    run = store.claim(engine, "worker", lease_s, tries)
    return run and Lease(run.id, run.fence)


def expire(engine):
    with engine.begin() as connection:
        connection.execute(update(RUNS).values(lease_until=0.0))


def trial(episode, best=0.5):
    return {"episode": episode, "accuracy": 0.5, "best_accuracy": best}


def history(engine, run_id):
    events = store.events_after(engine, run_id, 0)
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    said = [json.loads(event.data) for event in events]
    return [data.get("state", data.get("episode")) for data in said]


def test_the_migrations_make_the_tables(engine):
    with reading(engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_database_of_a_newer_version_is_said_in_a_sentence(engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    for bring in (migrate, check_current):
        with pytest.raises(HaqError, match=r"of a newer haq than this one|at revision 9999"):
            bring(engine)


def test_rows_of_the_version_before_are_kept_and_can_be_worked_on(database):
    engine = connect(database)
    run_id, upload_id = "a" * 32, "b" * 32
    with engine.begin() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        runs, uploads = (Table(name, MetaData(), autoload_with=connection)
                         for name in ("runs", "uploads"))  # fmt: skip
        connection.execute(runs.insert().values(
            id=run_id, owner="ada", title="of old", asked=JOB.model_dump_json(), state="queued",
            created=1.0, updated=1.0, not_before=0.0, fence=0, attempts=0, cancel=False, done=0,
            total=0, note="", episodes=0, episodes_asked=3, events=0,
        ))  # fmt: skip
        connection.execute(uploads.insert().values(
            id=upload_id, owner="ada", kind="data", name="pets", size_bytes=7, sha256="",
            classes=2, images=8, created=1.0,
        ))  # fmt: skip
    migrate(engine)
    assert store.stored(engine, "ada") == 7
    [run] = store.listed(engine)
    assert (run.words, run.remark, run.sweep, run.hook, run.busy_s) == ([], "", None, None, 0.0)
    store.report(engine, claimed(engine), 60.0, Progress(), [trial(0)], busy_s=2.0)
    run = store.find(engine, run_id)
    assert (run.state, run.episodes, run.busy_s) == ("running", 1, 2.0)
    engine.dispose()


def test_migrating_again_changes_nothing(engine):
    assert migrate(engine) == migrate(engine) == check_current(engine)


def test_an_empty_database_is_not_current(database):
    with pytest.raises(HaqError, match="the database is at revision none, this haq needs"):
        check_current(connect(database))


def test_another_database_is_refused():
    with pytest.raises(HaqError, match="database mysql: give sqlite:///FILE or postgresql"):
        connect("mysql+pymysql://host/name")


def test_a_run_from_submission_to_its_end(engine):
    run_id = new_run(engine)
    lease = claimed(engine)
    assert lease == Lease(run_id, 1)
    assert not store.report(engine, lease, 60, Progress("search", 1, 3), [trial(0)])
    store.finish(engine, lease, [trial(0), trial(1, 0.7), trial(2, 0.7)])
    run = store.find(engine, run_id)
    assert (run.state, run.episodes, run.best_accuracy) == ("finished", 3, 0.7)
    assert run.job == JOB
    assert history(engine, run_id) == ["queued", "running", 0, 1, 2, "finished"]


def test_the_oldest_run_is_first(engine):
    runs = [new_run(engine) for _ in range(3)]
    assert [claimed(engine).run_id for _ in runs] == runs
    assert claimed(engine) is None


def test_eight_workers_share_forty_runs_and_none_twice(engine):
    runs = {new_run(engine) for _ in range(40)}
    taken, lock = [], threading.Lock()

    def take():
        while (lease := claimed(engine)) is not None:
            store.finish(engine, lease)
            with lock:
                taken.append(lease.run_id)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 40 and set(taken) == runs


def test_a_living_lease_is_left_alone_and_a_dead_one_goes_to_another(engine):
    new_run(engine)
    first = claimed(engine)
    assert claimed(engine) is None
    expire(engine)
    second = claimed(engine)
    assert second == Lease(first.run_id, first.fence + 1)


WRITES = {
    "report": lambda engine, lease: store.report(engine, lease, 60, Progress(), [trial(0)]),
    "finish": lambda engine, lease: store.finish(engine, lease),
    "stop": lambda engine, lease: store.stop(engine, lease),
    "fail": lambda engine, lease: store.fail(engine, lease, "no"),
    "try_again": lambda engine, lease: store.try_again(engine, lease, 3, 0, "no", None),
    "hand_back": lambda engine, lease: store.hand_back(engine, lease),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_who_lost_the_lease_writes_nothing(engine, write):
    run_id = new_run(engine)
    old = claimed(engine)
    expire(engine)
    claimed(engine)
    before = store.find(engine, run_id), history(engine, run_id)
    with pytest.raises(LeaseLost):
        write(engine, old)
    assert (store.find(engine, run_id), history(engine, run_id)) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_run_that_was_deleted_under_a_worker_takes_nothing(engine, write):
    new_run(engine)
    lease = claimed(engine)
    store.stop(engine, lease)
    store.hide(engine, lease.run_id)
    with pytest.raises(LeaseLost):
        write(engine, lease)


def test_a_run_whose_workers_die_three_times_in_a_row_has_failed(engine):
    run_id = new_run(engine)
    for _ in range(3):
        assert claimed(engine).run_id == run_id
        expire(engine)
    assert claimed(engine) is None
    run = store.find(engine, run_id)
    assert run.state == "failed"
    assert run.message == (
        "given up after 3 tries without a new episode: the process of its search or worker died"
    )


def test_an_episode_starts_the_count_of_tries_again(engine):
    new_run(engine)
    for episode in range(5):
        store.report(engine, claimed(engine), 60, Progress(), [trial(episode)])
        expire(engine)
    assert claimed(engine) is not None


def test_tries_that_break_keep_the_traceback_for_the_operator(engine):
    run_id = new_run(engine)
    for left in (2, 1, 0):
        store.try_again(engine, claimed(engine), 3, 0.0, "an internal error", "Traceback …")
        assert store.find(engine, run_id).state == ("queued" if left else "failed")
    run = store.find(engine, run_id)
    assert run.traceback == "Traceback …"
    assert run.message == "given up after 3 tries without a new episode: an internal error"


def test_handing_back_is_no_try(engine):
    run_id = new_run(engine)
    for _ in range(5):
        store.hand_back(engine, claimed(engine))
    assert store.find(engine, run_id).attempts == 0
    assert claimed(engine) is not None


def test_a_lease_that_was_lost_by_a_living_worker_is_no_try(engine):
    run_id = new_run(engine)
    for _ in range(5):
        lost = claimed(engine)
        expire(engine)
        assert claimed(engine) is not None
        store.take_back_try(engine, lost)
        assert store.find(engine, run_id).attempts == 1
        store.hand_back(engine, Lease(run_id, lost.fence + 1))


def test_a_try_is_taken_back_only_from_runs_that_others_have(engine):
    run_id = new_run(engine)
    lease = claimed(engine)
    store.take_back_try(engine, lease)
    assert store.find(engine, run_id).attempts == 1
    store.finish(engine, lease)
    store.take_back_try(engine, Lease(run_id, lease.fence - 1))
    assert store.find(engine, run_id).attempts == 1


def test_a_paused_run_waits(engine):
    run_id = new_run(engine)
    store.hand_back(engine, claimed(engine), 500, "paused: no space left on device")
    assert claimed(engine) is None
    assert store.find(engine, run_id).state == "paused"
    with engine.begin() as connection:
        connection.execute(update(RUNS).values(not_before=0.0))
    assert claimed(engine).run_id == run_id


def test_a_waiting_run_is_cancelled_at_once(engine):
    run_id = new_run(engine)
    assert store.cancel(engine, run_id).state == "cancelled"
    assert claimed(engine) is None


def test_a_running_run_is_cancelled_by_its_worker(engine):
    run_id = new_run(engine)
    lease = claimed(engine)
    assert store.cancel(engine, run_id).state == "running"
    assert store.report(engine, lease, 60, Progress())
    store.stop(engine, lease)
    assert store.find(engine, run_id).state == "cancelled"


@pytest.mark.parametrize("how", ["expired", "handed back"])
def test_a_run_to_be_cancelled_is_not_taken_up_again(engine, how):
    run_id = new_run(engine)
    lease = claimed(engine)
    store.cancel(engine, run_id)
    if how == "expired":
        expire(engine)
    else:
        store.hand_back(engine, lease)
    assert claimed(engine) is None
    assert store.find(engine, run_id).state == "cancelled"


def test_a_cancelled_run_can_be_tried_again(engine):
    run_id = new_run(engine)
    store.cancel(engine, run_id)
    store.retry(engine, run_id)
    assert claimed(engine).run_id == run_id


@pytest.mark.parametrize(
    "act, sentence",
    [
        (store.cancel, "the run is finished already; there is nothing to cancel"),
        (store.retry, "the run is finished; only failed or cancelled runs are tried again"),
    ],
)
def test_what_does_not_suit_a_finished_run_is_refused(engine, act, sentence):
    run_id = new_run(engine)
    store.finish(engine, claimed(engine))
    with pytest.raises(Conflict, match=sentence):
        act(engine, run_id)


def test_a_running_run_is_not_deleted(engine):
    run_id = new_run(engine)
    claimed(engine)
    with pytest.raises(Conflict, match="the run is running; cancel it first"):
        store.hide(engine, run_id)


def test_a_deleted_run_is_gone_with_its_events(engine):
    run_id = new_run(engine)
    store.hide(engine, run_id)
    assert store.find(engine, run_id) is None and store.listed(engine) == []
    assert store.hidden(engine) == [run_id]
    store.forget(engine, run_id)
    assert store.hidden(engine) == [] and store.events_after(engine, run_id, 0) == []


def test_the_same_key_is_the_same_run(engine):
    first = new_run(engine, key="k")
    assert new_run(engine, key="k") == first
    assert new_run(engine, key="k", owner="bob") != first
    with pytest.raises(Conflict, match="idempotency key 'k' was used for another job before"):
        new_run(engine, key="k", job=Job(episodes=4))


def test_one_key_from_many_threads_is_one_run(engine):
    made, threads = [], []
    for _ in range(8):
        threads.append(threading.Thread(target=lambda: made.append(new_run(engine, key="k"))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1


def test_lists_are_of_an_owner_a_state_and_a_text_page_by_page(engine):
    runs = [new_run(engine, title=f"100% of {n}") for n in range(5)]
    with engine.begin() as connection:  # as within one tick of the database's clock
        connection.execute(update(RUNS).values(created=5.0))
    new_run(engine, owner="bob")
    first = store.listed(engine, "ada", limit=2)
    rest = store.listed(engine, "ada", limit=9, before=(first[-1].created, first[-1].id))
    assert [run.id for run in first + rest] == runs[::-1]
    assert len(store.listed(engine)) == 6
    assert [run.title for run in store.listed(engine, text="% OF 3")] == ["100% of 3"]
    claimed(engine)
    assert [run.id for run in store.listed(engine, states=["running"])] == runs[:1]
    assert store.counts(engine)["queued"] == 5


def test_a_locked_database_is_an_error_and_no_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("haq.service.database.BUSY_S", 0.01)
    engine = connect(f"sqlite:///{tmp_path / 'haq.sqlite'}")
    migrate(engine)
    run_id = new_run(engine)
    with engine.begin():
        with pytest.raises(OperationalError, match="locked"):
            claimed(connect(str(engine.url)))
        assert store.find(connect(str(engine.url)), run_id).state == "queued"
    assert claimed(engine).run_id == run_id


ACTS = st.lists(
    st.sampled_from(["claim", "expire", "report", "finish", "back", "again", "cancel", "retry"]),
    max_size=25,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=ACTS)
def test_whatever_happens_events_have_no_gap_and_the_last_state_is_the_rows(engine, acts):
    run_id = new_run(engine)
    leases = []
    for act in acts:
        try:
            perform(engine, act, run_id, leases)
        except (Conflict, LeaseLost):
            pass
    run = store.find(engine, run_id)
    told = history(engine, run_id)
    episodes = [entry for entry in told if isinstance(entry, int)]
    assert episodes == list(range(run.episodes))
    assert [entry for entry in told if isinstance(entry, str)][-1] == run.state
    assert run.events == len(told)
    with engine.begin() as connection:
        connection.execute(RUNS.delete())


def perform(engine, act, run_id, leases):
    if act == "claim":
        leases.extend(filter(None, [claimed(engine)]))
    elif act == "expire":
        expire(engine)
    elif act == "cancel":
        store.cancel(engine, run_id)
    elif act == "retry":
        store.retry(engine, run_id)
    elif leases:
        known = store.find(engine, run_id).episodes
        {
            "report": lambda: store.report(engine, leases[-1], 60, Progress(), [trial(known)]),
            "finish": lambda: store.finish(engine, leases[-1]),
            "back": lambda: store.hand_back(engine, leases[-1]),
            "again": lambda: store.try_again(engine, leases[-1], 3, 0.0, "no", None),
        }[act]()


def test_users_take_turns_however_many_runs_each_has(engine):
    first = [new_run(engine) for _ in range(3)]
    bobs = [new_run(engine, owner="bob") for _ in range(2)]
    order = []
    for _ in range(5):  # one worker, that has done a run before it takes the next
        lease = claimed(engine)
        order.append(lease.run_id)
        store.finish(engine, lease)
    assert order == [first[0], bobs[0], first[1], bobs[1], first[2]]


def test_whoever_has_fewer_runs_under_way_is_next(engine):
    first = [new_run(engine) for _ in range(3)]
    bobs = [new_run(engine, owner="bob") for _ in range(2)]
    assert [claimed(engine).run_id for _ in range(2)] == [first[0], bobs[0]]
    with engine.begin() as connection:  # bob's was taken long ago, and is still under way
        connection.execute(update(RUNS).where(RUNS.c.owner == "bob").values(taken=1.0))
    store.finish(engine, Lease(first[0], 1))
    assert claimed(engine).run_id == first[1]


def test_where_the_oldest_is_next_nobody_takes_turns(engine):
    runs = [new_run(engine) for _ in range(2)] + [new_run(engine, owner="bob")]
    oldest = store.Turns(fair=False)
    assert [store.claim(engine, "w", 60, 3, oldest).id for _ in range(3)] == runs


@pytest.mark.parametrize("fair", [True, False])
def test_a_user_has_so_many_runs_at_once_and_dead_ones_do_not_count(engine, fair):
    runs = [new_run(engine) for _ in range(2)]
    one = store.Turns(fair, running=1)
    assert store.claim(engine, "w", 60, 3, one).id == runs[0]
    assert store.claim(engine, "w", 60, 3, one) is None
    bobs = new_run(engine, owner="bob")
    assert store.claim(engine, "w", 60, 3, one).id == bobs
    expire(engine)
    assert store.claim(engine, "w", 60, 3, one).id == runs[0]


def test_a_clock_that_went_back_leaves_no_run_lying(engine):
    waits, dead = new_run(engine), new_run(engine)
    with engine.begin() as connection:
        connection.execute(update(RUNS).where(RUNS.c.id == waits).values(not_before=1e12))
    assert claimed(engine).run_id == waits
    assert claimed(engine).run_id == dead
    with engine.begin() as connection:  # whose worker died before the clock went back
        connection.execute(update(RUNS).where(RUNS.c.id == dead).values(lease_until=1e12))
    assert claimed(engine).run_id == dead
    assert claimed(engine) is None


def test_a_pause_of_today_and_a_lease_of_now_are_kept(engine):
    paused, running = new_run(engine), new_run(engine)
    store.hand_back(engine, claimed(engine), store.leases.PAUSE_S, "the disk is full")
    assert claimed(engine).run_id == running
    assert claimed(engine) is None
    assert store.find(engine, paused).state == "paused"


def test_a_run_given_up_for_dead_goes_on_where_its_worker_lives(engine):
    run_id = new_run(engine)
    lease = claimed(engine, tries=1)
    expire(engine)
    assert claimed(engine, tries=1) is None
    assert store.find(engine, run_id).state == "failed"
    assert not store.report(engine, lease, 60, Progress(), [trial(0)])
    assert store.find(engine, run_id).state == "running"
    expire(engine)
    assert claimed(engine, tries=2) is not None  # an episode was new: that is the first try
    assert history(engine, run_id) == ["queued", "running", "failed", "running", 0, "running"]


def test_a_finished_search_of_a_run_given_up_for_dead_is_finished(engine):
    run_id = new_run(engine)
    lease = claimed(engine, tries=1)
    expire(engine)
    claimed(engine, tries=1)
    store.finish(engine, lease)
    run = store.find(engine, run_id)
    assert (run.state, run.message) == ("finished", None)


def test_what_a_run_and_its_user_took_adds_up(engine):
    run_id = new_run(engine)
    lease = claimed(engine)
    for busy_s in (1.5, 2.0):
        store.report(engine, lease, 60, Progress(), busy_s=busy_s)
    store.weigh(engine, run_id, 10)
    store.weigh(engine, new_run(engine), 5)
    store.weigh(engine, new_run(engine, owner="bob"), 7)
    assert store.find(engine, run_id).busy_s == 3.5
    assert store.stored(engine, "ada") == 15


def test_the_line_is_shown_in_the_order_in_which_runs_are_taken(engine):
    for owner in ("ada", "ada", "ada", "bob", "bob", "eve"):
        new_run(engine, owner=owner)
    shown = [run.id for run in store.standing(engine).waiting]
    taken = [claimed(engine).run_id for _ in range(6)]
    assert shown == taken


def test_where_the_oldest_is_next_the_line_is_shown_so(engine):
    runs = [new_run(engine, owner=owner) for owner in ("ada", "ada", "bob")]
    assert [run.id for run in store.standing(engine, fair=False).waiting] == runs
