"""The first process of a host of the lab: makes the host's own view of files, starts sshd, and collects orphans.

python -S -m tests.multinode.host_init NAME DIRECTORY HOME, as process 1 of new namespaces. It prints a line when the
host is up.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    name, directory, home = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    _run("hostname", name)
    _run("ip", "link", "set", "lo", "up")
    # Process ids repeat on hosts, and with them the names of what lies here.
    for place in ("/run", "/dev/shm"):
        _run("mount", "-t", "tmpfs", "tmpfs", place)
    Path("/run/sshd").mkdir(mode=0o755)
    overlays = {"hosts": "/etc/hosts", "ssh_config": "/etc/ssh/ssh_config"}
    for file, place in overlays.items():
        _run("mount", "--bind", str(directory / file), place)
    if (home / ".ssh").is_dir():  # what the user of this machine has there is not for the lab
        _run("mount", "-t", "tmpfs", "tmpfs", str(home / ".ssh"))
    with open(directory / "sshd.log", "ab") as log:
        subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD}),
        )
    print("up", flush=True)
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            continue


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
