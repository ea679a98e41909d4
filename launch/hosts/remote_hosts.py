"""Asks other hosts about processes, and signals them there: one constant script over ssh, with digits for arguments.

The script travels on stdin and no name, path or value of a run is ever part of a command that a remote shell reads.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from launch.plan.forward import ssh_options
from launch.plan.words import LaunchFault, is_host
from launch.processes.ranks import Process

CONNECT_SECONDS = 3
ANSWER_SECONDS = 10
"""How long an answer may take once the connection stands."""
MAX_AT_ONCE = 64
_NO_ANSWER = 255
"""ssh's own exit code."""

SCRIPT = r"""
number=$1
shift
look() {
    set -- ${1##*)}
    state=$1
    shift 19
    begun=$1
}
while [ $# -ge 2 ]; do
    pid=$1 started=$2
    shift 2
    line=$(cat "/proc/$pid/stat" 2>/dev/null) || line=
    answer=gone
    if [ -n "$line" ]; then
        look "$line"
        case $state in
        Z | X) ;;
        *)
            if [ "$begun" = "$started" ]; then
                answer=alive
                [ "$number" -eq 0 ] || kill -s "$number" "$pid" 2>/dev/null || answer=refused
            fi
            ;;
        esac
    fi
    echo "duoflow $pid $answer"
done
"""
"""$1: a signal, 0 for none; then pairs of process id and start time, as /proc/PID/stat gives it. A line for each pair.

POSIX shell. Reading the start time and signalling are two steps: an id would have to change hands between them.
"""

KERNEL_SCRIPT = r"""
{ dmesg 2>/dev/null || tail -n 2000 /var/log/kern.log 2>/dev/null; } | grep -i "out of memory" | tail -n 100
exit 0
"""
"""The kernel's last words about processes that it ended for want of memory, if this user may read them."""


class Answer(NamedTuple):
    """What a host said of some processes."""

    alive: frozenset[int]
    """Process ids; with a signal, those that were sent it."""
    fault: str | None = None
    """Why nothing is known; None if the host has answered."""


def ask_hosts(processes: Sequence[Process], number: signal.Signals | None = None) -> Mapping[str, Answer]:
    """Look up processes on their hosts, all hosts at once, and send each that is alive a signal, if one is given.

    A host that is down costs the time of a connection, not more.

    Returns:
        An answer of each host that was named.
    """
    hosts = sorted({process.host for process in processes})
    if not hosts:
        return {}
    by_host = [[process for process in processes if process.host == host] for host in hosts]
    with ThreadPoolExecutor(min(len(hosts), MAX_AT_ONCE)) as pool:
        return dict(zip(hosts, pool.map(_ask, hosts, by_host, [number] * len(hosts)), strict=True))


def kernel_log_of(host: str) -> list[str]:
    """The lines of another host's kernel about a lack of memory; none if they cannot be had."""
    return _run_script(host, KERNEL_SCRIPT, []).stdout.splitlines()


def _ask(host: str, processes: Sequence[Process], number: signal.Signals | None) -> Answer:
    # Without a start time (no /proc there) nobody could tell a rank from another process.
    known = [process for process in processes if process.started is not None]
    pairs = [word for process in known for word in (str(process.pid), str(process.started))]
    sent = "0" if number is None else str(int(number))
    said = _run_script(host, SCRIPT, [sent, *pairs])
    if said.returncode != 0:
        return Answer(frozenset(), _last_line(said.stderr, f"ssh returned {said.returncode}"))
    # A login shell may greet before the answer.
    answers = [line.split() for line in said.stdout.splitlines()]
    found = {int(words[1]): words[2] for words in answers if len(words) == 3 and words[0] == "duoflow"}
    if found.keys() != {process.pid for process in known}:
        return Answer(frozenset(), "its answer cannot be read")
    refused = [str(pid) for pid, answer in found.items() if answer == "refused"]
    if refused:
        return Answer(frozenset(), f"process {', '.join(refused)} cannot be signalled: it belongs to another user")
    return Answer(frozenset(pid for pid, answer in found.items() if answer == "alive"))


def _run_script(host: str, script: str, digits: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a constant script on a host; a code other than 0 is no answer, for the reason on stderr."""
    assert is_host(host), host
    assert all(word.isdecimal() for word in digits), digits
    seconds = CONNECT_SECONDS + ANSWER_SECONDS
    try:
        # ssh takes the first value that it finds for an option: ours is shorter than that of a start.
        command = ["ssh", "-T", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "LogLevel=ERROR"]
        command += [*ssh_options(os.environ), host, "sh", "-s", "--", *digits]
        return subprocess.run(
            command, input=script, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], _NO_ANSWER, "", f"no answer within {seconds} s")
    except FileNotFoundError:
        return subprocess.CompletedProcess([], _NO_ANSWER, "", "ssh is not installed here")
    except LaunchFault as fault:
        return subprocess.CompletedProcess([], _NO_ANSWER, "", str(fault))


def _last_line(text: str, otherwise: str) -> str:
    """The last line that says something: what a command failed with."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else otherwise
