import logging
import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.reporting.progress import Console, Progress, StepReport, render_duration, render_line

untimed = settings(deadline=None)


def progress(**changed) -> Progress:
    return Progress(**{"total_steps": 100, "total_validations": 4, "questions_per_validation": 50, **changed})


def report(step: int = 120, **changed) -> StepReport:
    known = {"total_steps": 1200, "epoch": 2, "epochs": 10, "loss": 1.234, "learning_rate": 1e-4}
    return StepReport(step=step, **{**known, **changed})


def test_the_line_says_where_the_run_is_and_how_long_it_still_takes():
    full = report(
        parts={"answer": 0.9, "itm": 0.3}, grad_norm=0.8, questions_per_second=412.3, eta_seconds=12 * 60 + 10
    )
    assert render_line(full) == (
        "step 120/1200 epoch 2/10 loss 1.234 (answer 0.9 itm 0.3) lr 1.0e-04 grad 0.8 412 questions/s left 12 min 10 s"
    )


def test_what_is_not_known_is_left_out_of_the_line():
    assert render_line(report()) == "step 120/1200 epoch 2/10 loss 1.234 lr 1.0e-04"


def test_a_loss_that_is_nan_is_shown_as_such():
    assert "loss nan (itm inf)" in render_line(report(loss=float("nan"), parts={"itm": float("inf")}))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (730, "12 min 10 s"),
        (9061, "2 h 31 min"),
        (86400 * 3 + 4 * 3600, "3 d 4 h"),
        (-1, "0 s"),
        (float("inf"), "unknown"),
    ],
)
def test_a_duration_is_given_in_its_two_largest_units(seconds, text):
    assert render_duration(seconds) == text


def test_nothing_is_foretold_before_the_first_step():
    idle = progress()
    assert idle.eta_seconds(0) is None
    assert idle.questions_per_second is None


def test_the_first_steps_count_only_until_there_are_others():
    run = progress(total_validations=0, slow_steps=2)
    run.step_done(60.0, 10)
    assert run.eta_seconds(1) == 99 * 60
    run.step_done(20.0, 10)
    assert run.eta_seconds(2) == 98 * 40
    run.step_done(2.0, 10)
    run.step_done(4.0, 10)
    assert run.eta_seconds(4) == 96 * 3
    assert run.questions_per_second == pytest.approx(20 / 6)


def test_the_rate_follows_the_last_steps_only():
    run = progress(slow_steps=0, window=3)
    for seconds in (100.0, 1.0, 2.0, 3.0):
        run.step_done(seconds, 12)
    assert run.step_seconds == 2.0
    assert run.questions_per_second == 6.0


def test_before_a_validation_was_timed_it_costs_as_its_questions_do_in_training():
    run = progress(slow_steps=0, validation_cost=2.0)
    run.step_done(1.0, 10)
    assert run.validation_seconds == 2.0 * 50 / 10
    assert run.eta_seconds(1) == 99 * 1.0 + 4 * 10.0


def test_after_validations_their_own_mean_counts_and_only_the_remaining_ones():
    run = progress(slow_steps=0)
    run.step_done(1.0, 10)
    run.validation_done(30.0)
    run.validation_done(50.0)
    assert run.eta_seconds(60) == 40 * 1.0 + 2 * 40.0


def test_a_resumed_run_still_counts_the_validations_of_before():
    run = progress(slow_steps=0, validations_done=3)
    run.step_done(1.0, 10)
    assert run.eta_seconds(90) == 10 * 1.0 + 1 * 5.0


@untimed
@given(
    seconds=st.floats(0.01, 100), questions=st.integers(1, 1000), cost=st.floats(0.1, 4), validations=st.integers(1, 9)
)
def test_with_a_constant_rate_the_first_estimate_is_what_the_run_takes(seconds, questions, cost, validations):
    run = progress(total_steps=20, total_validations=validations, validation_cost=cost)
    run.step_done(seconds, questions)
    estimate = run.eta_seconds(1)
    spent = 0.0
    for _ in range(validations):
        assert run.validation_seconds == pytest.approx(cost * 50 * seconds / questions)
        spent += run.validation_seconds
        run.validation_done(run.validation_seconds)
    for step in range(2, 21):
        run.step_done(seconds, questions)
        spent += seconds
        assert run.eta_seconds(step) == pytest.approx(estimate - spent, abs=1e-6 * estimate)
    assert run.eta_seconds(20) == 0.0


def test_a_report_is_due_at_the_first_step_of_a_process_every_n_and_at_the_last():
    for first, expected in [(1, [1, 10, 20, 25]), (13, [13, 20, 25])]:
        main, other = (Console(total_steps=25, every_steps=10, is_main=is_main) for is_main in (True, False))
        assert [step for step in range(first, 26) if main.due(step)] == expected
        assert [step for step in range(first, 26) if other.due(step)] == expected


def test_without_a_terminal_a_report_is_a_plain_log_line(caplog, tmp_path):
    with caplog.at_level(logging.INFO), open(tmp_path / "log", "w+") as stream:
        console = Console(total_steps=1200, every_steps=1, stream=stream)
        console.show(report())
        console.close()
        stream.seek(0)
        assert stream.read() == ""
    assert caplog.messages == [render_line(report())]


def test_other_ranks_show_nothing(caplog):
    with caplog.at_level(logging.INFO):
        Console(total_steps=1200, every_steps=1, is_main=False).show(report())
    assert caplog.messages == []


@pytest.fixture
def terminal():
    """The two ends of a terminal 200 columns wide: a descriptor to read from, a stream that is a terminal."""
    reading, writing = os.openpty()
    termios.tcsetwinsize(writing, (24, 200))
    stream = os.fdopen(writing, "w")
    yield reading, stream
    stream.close()


def test_on_a_terminal_one_bar_shows_the_same_content(terminal, caplog):
    reading, stream = terminal
    console = Console(total_steps=1200, every_steps=1, stream=stream)
    with caplog.at_level(logging.INFO):
        console.show(report(120))
        console.show(report(600))
        console.close()
    drawn = b""
    while b"\n" not in drawn:  # the kernel hands over what was written in pieces; the end of the bar is a new line
        drawn += os.read(reading, 65536)
    os.close(reading)
    drawn = drawn.decode()
    assert render_line(report(120)) in drawn
    assert render_line(report(600)) in drawn.rsplit("\r", 2)[-2]
    assert drawn.count("\n") == 1
    assert " 50%|" in drawn
    assert caplog.messages == []


def test_when_the_terminal_goes_away_log_lines_take_over(terminal, caplog):
    reading, stream = terminal
    console = Console(total_steps=1200, every_steps=1, stream=stream)
    with caplog.at_level(logging.INFO):
        console.show(report(120))
        os.close(reading)
        console.show(report(240))
        console.show(report(360))
        console.close()
    assert caplog.messages == [render_line(report(240)), render_line(report(360))]


LOGGING_PROCESS = """
import logging, sys
from trainer.reporting.progress import Console, ConsoleHandler, StepReport
logging.basicConfig(level=logging.INFO, handlers=[ConsoleHandler()], format="%(message)s")
console = Console(total_steps=500, every_steps=1)
def show(step):
    console.show(StepReport(step=step, total_steps=500, epoch=1, epochs=1, loss=1.0, learning_rate=1.0))
show(1)
sys.stdin.readline()
for step in range(2, 501):
    show(step)
console.close()
sys.stderr.write("all 500 steps done")
"""


def test_training_goes_on_in_silence_when_nobody_reads_stdout_any_more():
    process = subprocess.Popen(
        [sys.executable, "-c", LOGGING_PROCESS],
        cwd=Path(__file__).parents[4],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("step 1/500")
    process.stdout.close()
    process.stdin.write("closed\n")
    process.stdin.close()
    assert process.stderr.read() == "all 500 steps done"
    process.stderr.close()
    assert process.wait(timeout=60) == 0
