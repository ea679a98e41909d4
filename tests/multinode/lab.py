"""Hosts on one machine: each has network, processes, host name and mounts of its own, sshd, and a port of one switch.

    with Lab(directory) as lab:
        first, second = lab.add_host(), lab.add_host()
        first.run(["ssh", second.name, "hostname"])

Namespaces have no names here. They live in processes that the kernel kills with the process that made the lab, so a
killed test run leaves nothing behind, two labs never meet, and nothing outside `directory` is written.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[2]
TOOLS = {
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "pdsh": "pdsh",
    "ip": "iproute2",
    "tc": "iproute2",
    "ethtool": "ethtool",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
"""Commands, each with the Debian package that has it."""
NETWORK = "10.77.0"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UP_SECONDS = 60.0
POLL_SECONDS = 0.05

_OFFLOADS = ("tx", "tso", "gso", "gro")
"""What a network card does later; on a veth nobody does, and a repeater would pass on giants without checksums."""
_DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_PROBE = (
    "ip link add br0 type bridge && ip link add left type veth peer name right && "
    "tc qdisc add dev left root tbf rate 100mbit burst 128kb latency 100ms"
)


def what_is_missing() -> str | None:
    """Why no lab can be made here; None if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts of a lab are network namespaces, which needs root on Linux"
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None})
    if missing:
        return f"missing: apt-get install {' '.join(missing)}"
    probe = subprocess.run(
        ["unshare", "--net", "--uts", "--pid", "--mount", "--ipc", "--fork", "--mount-proc", "sh", "-c", _PROBE],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": SYSTEM_PATH},
    )
    return None if probe.returncode == 0 else f"this kernel makes no such network: {probe.stderr.strip()}"


class Process(NamedTuple):
    """A process of a host."""

    pid: int
    """On this machine, as `os.kill` takes it."""
    own_pid: int
    """On its host."""
    command: str


class Lab:
    """Hosts and the switch between them, in a directory that all hosts see: their shared disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts: dict[str, Host] = {}
        self._stack = contextlib.ExitStack()
        self._ports = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._write_keys()
            command = [*_DIE_WITH_US, "unshare", "--net", "sh", "-c", "echo up; exec sleep infinity"]
            self._switch = stack.enter_context(_running(command))
            self.in_switch("ip", "link", "add", "br0", "type", "bridge")
            self.in_switch("ip", "link", "set", "br0", "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for host in self.hosts.values():
            host.kill()
        self._stack.close()

    def add_host(self, name: str | None = None) -> "Host":
        """A host more, which all others know by name. A name whose host is gone comes back under its address."""
        known = self.hosts.get(name or "")
        number = len(self.hosts) + 1 if known is None else known.number
        assert known is None or not known.is_alive, f"{name} runs already"
        self._ports += 1
        host = Host(self, name or f"node{number}", number, f"port{self._ports}")
        self.hosts[host.name] = host
        self.write_names()
        host.boot()
        return host

    def connect(self, host: "Host") -> None:
        """Plug a new host into the switch."""
        self.in_switch("ip", "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self.in_switch("ip", "link", "set", host.port, "master", "br0", "up")

    def in_switch(self, *command: str) -> None:
        """Run a command in the switch's network."""
        _checked(["nsenter", f"--net=/proc/{self._switch.pid}/ns/net", *command])

    @contextlib.contextmanager
    def slow_switch(self, *, delay_seconds: float, loss: float = 0.0) -> Iterator[None]:
        """A switch that passes every frame on later, one way, and loses a share of them. For hosts that are there."""
        hosts = [host for host in self.hosts.values() if host.is_alive]
        ports = [host.port for host in hosts]
        repeater = [sys.executable, "-S", "-m", "tests.multinode.repeater", str(delay_seconds), str(loss), *ports]
        with contextlib.ExitStack() as stack:
            for host in hosts:
                self.in_switch("ip", "link", "set", host.port, "nomaster")
                stack.callback(self.in_switch, "ip", "link", "set", host.port, "master", "br0")
                host.set_offloads(on=False)
                stack.callback(host.set_offloads, on=True)
            net = f"--net=/proc/{self._switch.pid}/ns/net"
            stack.enter_context(_running([*_DIE_WITH_US, "nsenter", net, *repeater]))
            yield

    def write_names(self) -> None:
        """Write every host's /etc/hosts. In place, because what is mounted on a host is the file and not its name."""
        for host in self.hosts.values():
            names = {other.name: other.address for other in self.hosts.values()} | host.names
            lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items() if address)]
            host.directory.mkdir(parents=True, exist_ok=True)
            (host.directory / "hosts").write_text("\n".join(lines) + "\n")

    def _write_keys(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "user_key"):
            if not (self.directory / name).exists():
                _checked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / name)])
        key = " ".join((self.directory / "host_key.pub").read_text().split()[:2])
        (self.directory / "known_hosts").write_text(f"* {key}\n")


class Host:
    """A machine of a lab; made by `Lab.add_host`."""

    def __init__(self, lab: Lab, name: str, number: int, port: str) -> None:
        self.lab, self.name, self.number, self.port = lab, name, number, port
        self.address = f"{NETWORK}.{number}"
        self.directory = lab.directory / "hosts" / name
        self.names: dict[str, str | None] = {}
        """Addresses that this host alone knows for names; None is not known at all."""
        self._stack = contextlib.ExitStack()
        self._outer: subprocess.Popen | None = None
        self.pid = 0
        """Of the host's first process, on this machine."""

    @property
    def is_alive(self) -> bool:
        return self._outer is not None and self._outer.poll() is None

    def boot(self) -> None:
        """Make the namespaces, start what runs on every host, and plug it in."""
        self._write_configuration()
        spaces = ("--net", "--uts", "--pid", "--mount", "--ipc", "--fork", "--kill-child", "--mount-proc")
        home = pwd.getpwuid(os.geteuid()).pw_dir
        init = [sys.executable, "-S", "-m", "tests.multinode.host_init", self.name, str(self.directory), home]
        with contextlib.ExitStack() as stack:
            self._outer = stack.enter_context(_running([*_DIE_WITH_US, "unshare", *spaces, *init]))
            children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
            self.pid = int(children[0])
            self.lab.connect(self)
            self.command("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
            self.command("ip", "link", "set", "eth0", "up")
            self._stack = stack.pop_all()
        self._wait_for_sshd()

    def popen(
        self, argv: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path = ROOT, **more: object
    ) -> subprocess.Popen:
        """Start a command as its user would who is logged in there; it leads a process group of its own.

        Args:
            environment: variables in addition to those of a login.
            more: for `subprocess.Popen`.
        """
        spaces = ["--net", "--uts", "--pid", "--mount", "--ipc", f"--wdns={cwd}"]
        return subprocess.Popen(
            ["nsenter", f"--target={self.pid}", *spaces, *argv],
            env={"PATH": SYSTEM_PATH, "HOME": str(self.directory), "LANG": "C.UTF-8", **(environment or {})},
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **more},
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        timeout_seconds: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; stdout and stderr come apart. What does not end in time is killed, and raises."""
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = self.popen(argv, environment=environment, cwd=cwd, **piped)
        try:
            out, err = process.communicate(timeout=timeout_seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            print(*process.communicate())
            raise
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def end(self, process: subprocess.Popen) -> None:
        """Kill what `popen` has started, and what that has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def command(self, *argv: str) -> None:
        """Run a command that has to succeed."""
        done = self.run(argv)
        assert done.returncode == 0, (argv, done.stderr)

    def processes(self) -> list[Process]:
        """What runs there, without what makes the host a host."""
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = [_process(int(path.name), space) for path in Path("/proc").glob("[0-9]*")]
        return [process for process in found if process is not None and process.pid != self.pid]

    def matching(self, text: str) -> list[Process]:
        """Processes whose command line holds a text, without shells that carry it along."""
        return [p for p in self.processes() if text in p.command and not p.command.startswith(("bash", "sh ", "ssh"))]

    def path(self, path: Path) -> Path:
        """A file of this host, as this machine finds it: where the host has a disk of its own there."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")

    @contextlib.contextmanager
    def own_disk(self, path: Path, *, megabytes: int = 256) -> Iterator[Path]:
        """Meanwhile the host has an empty disk of its own at a path; as this machine finds it."""
        path.mkdir(parents=True, exist_ok=True)
        self.command("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path))
        try:
            yield self.path(path)
        finally:
            if self.is_alive:
                self.command("umount", "--lazy", str(path))

    @contextlib.contextmanager
    def calling(self, names: Mapping[str, str | None]) -> Iterator[None]:
        """Meanwhile names have these addresses on this host; None makes a name unknown."""
        before, self.names = self.names, self.names | dict(names)
        self.lab.write_names()
        try:
            yield
        finally:
            self.names = before
            self.lab.write_names()

    @contextlib.contextmanager
    def limited_to(self, rate: str) -> Iterator[None]:
        """Meanwhile the host sends no more than this, in tc's words: 100mbit."""
        bucket = ("tbf", "rate", rate, "burst", "128kb", "latency", "100ms")
        self.command("tc", "qdisc", "add", "dev", "eth0", "root", *bucket)
        try:
            yield
        finally:
            self.command("tc", "qdisc", "del", "dev", "eth0", "root")

    def set_offloads(self, *, on: bool) -> None:
        """Let the network card finish frames, or do it before they leave."""
        if self.is_alive:
            switches = [word for name in _OFFLOADS for word in (name, "on" if on else "off")]
            self.command("ethtool", "-K", "eth0", *switches)

    def sent_bytes(self) -> int:
        """What has left the host since it was plugged in."""
        return int(Path(f"/proc/{self.pid}/net/dev").read_text().split("eth0:")[1].split()[8])

    def unplug(self) -> None:
        """Pull the network cable: nobody is told."""
        self.lab.in_switch("ip", "link", "set", self.port, "down")

    def plug(self) -> None:
        """Put the cable back."""
        self.lab.in_switch("ip", "link", "set", self.port, "up")

    def power_off(self) -> None:
        """End the host without a word to anybody: a closed connection would be one."""
        self.unplug()
        self.kill()

    def kill(self) -> None:
        """End all processes of the host, and with them its namespaces."""
        self._stack.close()

    def _wait_for_sshd(self) -> None:
        deadline = time.monotonic() + UP_SECONDS
        probe = f"exec 3<>/dev/tcp/{self.address}/22"
        while self.run(["bash", "-c", probe]).returncode != 0:
            assert time.monotonic() < deadline, (self.directory / "sshd.log").read_text()
            time.sleep(POLL_SECONDS)

    def _write_configuration(self) -> None:
        lab = self.lab.directory
        (self.directory / "ssh_config").write_text(
            f"""Host *
  IdentityFile {lab}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {lab}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  LogLevel ERROR
"""
        )
        (self.directory / "sshd_config").write_text(
            f"""Port 22
ListenAddress 0.0.0.0
HostKey {lab}/host_key
AuthorizedKeysFile {lab}/user_key.pub
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
MaxStartups 100:30:200
"""
        )


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen]:
    """A process that has said that it is up; it is killed at the end, and what it has started with it."""
    environment = {"PATH": SYSTEM_PATH, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "up\n", f"{command}: ended before it was up, saying {line!r}"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _checked(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, env={"PATH": SYSTEM_PATH}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (command, done.stderr)


def _process(pid: int, space: str) -> Process | None:
    """A process, if it runs in this PID namespace; zombies do not."""
    proc = Path(f"/proc/{pid}")
    try:
        if os.readlink(proc / "ns/pid") != space:
            return None
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # it has just gone
        return None
    if status["State"].startswith(("Z", "X")):
        return None
    return Process(pid, int(status["NSpid"].split()[-1]), command)
