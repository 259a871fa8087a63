"""Progress where nobody looks at a terminal: lines, few of them, without control codes."""

from haq.cli.terminal.progress import lines
from haq.runs.progress import Progress


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def written(stage, count, seconds_each, clock=None, note=""):
    """Return the lines of a stage of equal steps."""
    out, clock = [], clock or Clock()
    on_progress = lines(out.append, clock)
    for done in range(1, count + 1):
        on_progress(Progress(stage, done, count, note))
        clock.now_s += seconds_each
    return out


def test_a_stage_of_seconds_has_a_line_at_its_begin_and_one_at_its_end():
    assert written("calibrate", 100, 0.03) == ["calibrate 1/100", "calibrate 100/100, done in 3 s"]


def test_a_stage_of_minutes_has_a_line_for_every_tenth():
    out = written("search", 100, 2.0)
    assert out[:3] == [
        "search 1/100",
        "search 11/100, about 2 min 58 s left",
        "search 21/100, about 2 min 38 s left",
    ]
    assert out[-1] == "search 100/100, done in 3 min 18 s"
    assert len(out) == 11


def test_a_stage_of_hours_has_a_line_every_half_minute():
    out = written("train", 2000, 7.2)  # four hours
    assert len(out) == 1 + -(-1999 // 5)  # the 1999 steps after the first, five in 36 s


def test_the_note_stands_at_the_end():
    assert written("train", 2, 40.0, note="loss 0.3")[-1] == "train 2/2, done in 40 s, loss 0.3"


def test_a_stage_that_comes_again_is_a_new_one():
    out, clock = [], Clock()
    on_progress = lines(out.append, clock)
    for _ in range(2):
        for done in (1, 2):
            on_progress(Progress("fine-tune", done, 2))
            clock.now_s += 10
    assert out == ["fine-tune 1/2", "fine-tune 2/2, done in 10 s"] * 2


def test_what_a_run_does_otherwise_is_one_line():
    assert written("plan", 1, 0.0, note="12 % of the weights stay float") == [
        "12 % of the weights stay float"
    ]


def test_an_end_that_is_told_twice_is_one_line():
    out, clock = [], Clock()
    on_progress = lines(out.append, clock)
    for done in (1, 2, 2):
        on_progress(Progress("train", done, 2))
        clock.now_s += 60
    assert out == ["train 1/2", "train 2/2, done in 1 min 0 s"]


def test_a_stage_of_one_step_has_one_line():
    assert written("round", 1, 3.0) == ["round 1/1"]


def test_the_time_left_for_the_whole_run_by_hand():
    written, seconds = [], iter([0.0, 30.0, 60.0])
    on_progress = lines(written.append, lambda: next(seconds))
    for stage, done, share in (("calibrate", 1, 0.0), ("search", 1, 0.01), ("search", 2, 0.25)):
        on_progress(Progress(stage, done, 4, share=share))
    # A quarter took a minute.
    assert written == [
        "calibrate 1/4", "search 1/4",
        "search 2/4, about 1 min 0 s left, the whole run: about 3 min 0 s left",
    ]  # fmt: skip
