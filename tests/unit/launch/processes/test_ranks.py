"""Records say which processes are ranks and how they ended; what is no record is no reason to fail, or to signal."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.processes.ranks import (
    attending,
    damaged_records,
    forget_ranks,
    live_ranks,
    read_attendant,
    read_records,
    record_end,
    record_rank,
    recorded_ranks,
    send_exactly,
    this_process,
)
from tests.processes import as_process, leave_record, sleeper

HERE = socket.gethostname()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "7",
        '{"pid": 12',
        '{"pid": "12", "started": "3", "host": "a"}',
        '{"pid": 0, "started": "3", "host": "a"}',
        '{"pid": -1, "started": "3", "host": "a"}',
        '{"pid": true, "started": "3", "host": "a"}',
        '{"pid": 12, "started": "$(id)", "host": "a"}',
        '{"pid": 12, "started": "3", "host": "-oProxyCommand=id"}',
        '{"pid": 12, "started": "3"}',
        "\xff\xfe",
    ],
)
def test_what_is_no_record_is_passed_over_named_and_removed_by_the_next_start(tmp_path: Path, text: str):
    record_rank(tmp_path, 0)
    (tmp_path / "rank1.pid").write_bytes(text.encode("latin-1"))
    assert live_ranks(tmp_path) == [os.getpid()]
    assert (recorded_ranks(tmp_path), damaged_records(tmp_path)) == (1, ["rank1.pid"])
    forget_ranks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_leaves_its_exit_code_once_it_ends_by_itself(tmp_path: Path):
    record_rank(tmp_path, 3)
    assert [record.exit_code for record in read_records(tmp_path)] == [None]
    record_end(tmp_path, 3, 75)
    assert [(record.rank, record.exit_code) for record in read_records(tmp_path)] == [(3, 75)]


def test_a_process_does_not_sign_for_another(tmp_path: Path):
    with sleeper() as other:
        leave_record(tmp_path, 0, other.pid, host=HERE)
        record_end(tmp_path, 0, 0)
        record_end(tmp_path, 1, 0)
        assert [(record.rank, record.exit_code) for record in read_records(tmp_path)] == [(0, None)]


def test_a_signal_reaches_the_very_process_and_no_other_with_its_id():
    with sleeper() as process:
        right = as_process(process.pid, HERE)
        for wrong in (right._replace(started="1"), right._replace(host="elsewhere")):
            assert send_exactly(signal.SIGKILL, [wrong]) == []
        assert process.poll() is None
        assert send_exactly(signal.SIGTERM, [right]) == [right]
        assert process.wait() == -signal.SIGTERM
        assert send_exactly(signal.SIGTERM, [right]) == []


def test_an_attendant_that_leaves_is_forgotten_and_one_that_was_killed_is_not(tmp_path: Path):
    with attending(tmp_path, "logs/console.log"):
        found = read_attendant(tmp_path)
        assert found is not None
        assert (found.process, found.log) == (this_process(), "logs/console.log")
    assert read_attendant(tmp_path) is None
    code = (
        "import os, sys; from pathlib import Path; from launch.processes.ranks import attending\n"
        "with attending(Path(sys.argv[1]), None): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[4], check=False)
    found = read_attendant(tmp_path)
    assert found is not None
    assert found.process.pid != os.getpid()


def test_an_attendant_that_was_followed_by_another_leaves_that_one_alone(tmp_path: Path):
    with attending(tmp_path, None):
        values = json.loads((tmp_path / "attendant.pid").read_text())
        (tmp_path / "attendant.pid").write_text(json.dumps({**values, "pid": 4_000_000}))
    found = read_attendant(tmp_path)
    assert found is not None
    assert found.process.pid == 4_000_000


@pytest.mark.parametrize("log", ["/etc/passwd", "../../secret", 7])
def test_an_attendants_log_lies_in_the_run(tmp_path: Path, log: object):
    (tmp_path / "attendant.pid").write_text(json.dumps({**this_process()._asdict(), "log": log}))
    found = read_attendant(tmp_path)
    assert found is not None
    assert found.log is None
