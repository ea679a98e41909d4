"""Every fault of a hostfile is one line with its number; what is read back is what was written."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.plan.hostfile import parse_hostfile, read_hostfile, write_hostfile
from launch.plan.launch_plan import Node
from launch.plan.words import LaunchFault


def test_deepspeeds_own_format_with_comments_and_blank_lines():
    text = "# two nodes\n\nnode-1.cluster slots=8   # rank 0\n  10.0.0.2\tslots=8\n"
    assert parse_hostfile(text, "hosts") == (Node("node-1.cluster", 8), Node("10.0.0.2", 8))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "hosts: names no host"),
        ("# a slots=1\n\n", "hosts: names no host"),
        ("a\n", "hosts:1: 'a': expected `HOST slots=N`"),
        ("a 8\n", "hosts:1: 'a 8': expected"),
        ("a slots=8 b\n", "hosts:1: 'a slots=8 b': expected"),
        ("a slots=-1\n", "hosts:1: 'a slots=-1': expected"),
        ("a slots=\u0661\n", "hosts:1: .*: expected"),
        ("a slots=8\nb slots=8\na slots=8\n", "hosts:3: a stands already in line 1"),
        ("a slots=0\n", "hosts:1: a has slots=0; expected 1 to"),
        ("a slots=99999999999999999999\n", "hosts:1: a has slots=9+; expected 1 to"),
        ("a slots=8\nb slots=4\n", "hosts:2: b has 4 slots and a has 8"),
        ("user@a slots=1\n", "hosts:1: 'user@a' is no host name"),
        ("-oProxyCommand=id slots=1\n", "hosts:1: '-oProxyCommand=id' is no host name"),
        ("a;id slots=1\n", "hosts:1: 'a;id' is no host name"),
        ("$(id) slots=1\n", r"hosts:1: '\$\(id\)' is no host name"),
        ("a[1-9] slots=1\n", "hosts:1: .* is no host name"),
        ("h\u00f6st slots=1\n", "hosts:1: .* is no host name"),
    ],
)
def test_faults_are_one_line_with_their_number(text: str, says: str):
    with pytest.raises(LaunchFault, match=says) as fault:
        parse_hostfile(text, "hosts")
    assert "\n" not in str(fault.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path):
    with pytest.raises(LaunchFault, match="hosts: No such file or directory; expected a hostfile"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LaunchFault, match="hosts: is no text"):
        read_hostfile(tmp_path / "hosts")


@given(st.text(max_size=80))
def test_whatever_a_file_holds_only_host_names_come_out(text: str):
    try:
        nodes = parse_hostfile(text, "hosts")
    except LaunchFault:
        return
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", node.name) for node in nodes)
    assert parse_hostfile(write_hostfile(nodes), "again") == nodes


@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), min_size=1, unique=True))
def test_deepspeed_reads_what_is_written(names: list[str]):
    runner = pytest.importorskip("deepspeed.launcher.runner")
    text = write_hostfile([Node(name, 4) for name in names])
    assert dict(runner._parse_hostfile(text.splitlines(keepends=True))) == dict.fromkeys(names, 4)
