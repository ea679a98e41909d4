"""Hosts asked through ssh, from the first question to the last kill; ssh is a script that runs its command here."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch import pod
from launch.hosts import ssh
from launch.hosts.cluster import Cluster, Offer, greet_all, master_address
from launch.hosts.ssh import Hosts
from launch.network import is_free
from launch.node import marked
from launch.plan.launch_plan import Node
from launch.plan.words import LaunchFault

ROOT = Path(__file__).parents[4]
NODES = (Node("127.0.0.1", 1), Node("127.0.0.2", 1))
SSH = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -o ]] && shift; shift; done
host=$1
echo "$host $2" >> "$LOG"
case " $DOWN " in *" $host "*) echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255 ;; esac
sh -c "$2" | sed "s/\\"host\\": \\"[^\\"]*\\"/\\"host\\": \\"${SAME:-$host}\\"/"
exit "${PIPESTATUS[0]}"
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch) -> Path:
    """Where the commands are written that ssh was given."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "asked"))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return tmp_path / "asked"


@pytest.fixture
def cluster(tmp_path: Path, asked: Path) -> Cluster:
    assert asked.parent == tmp_path
    hosts = Hosts(
        names=tuple(node.name for node in NODES),
        options=("-o", "BatchMode=yes"),
        directory=str(tmp_path),
        python=sys.executable,
        environment={"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
    )
    return Cluster(hosts, str(tmp_path / "runs/a"), "DUOFLOW_TEST_MARK")


class TestGreeting:
    def test_hosts_offer_an_address_and_a_port_that_is_free(self, cluster: Cluster):
        offer = greet_all(cluster, NODES, "10.0.0.1", None)
        assert offer == Offer(address="10.0.0.1", port=offer.port, gpus=0, cores=len(os.sched_getaffinity(0)))
        assert is_free(offer.port)

    def test_a_chosen_port_that_is_taken_is_refused(self, cluster: Cluster):
        with socket.socket() as listener:
            listener.bind(("", 0))
            listener.listen()
            port = listener.getsockname()[1]
            with pytest.raises(LaunchFault, match=f"host 127.0.0.1: port {port} is taken"):
                greet_all(cluster, NODES, "10.0.0.1", port)

    def test_a_host_that_cannot_be_reached_is_named_with_ssh_s_own_words(self, cluster: Cluster, monkeypatch):
        monkeypatch.setenv("DOWN", "127.0.0.2")
        with pytest.raises(LaunchFault, match=r"^host 127.0.0.2: ssh cannot reach it \(.*No route to host\)"):
            greet_all(cluster, NODES, "10.0.0.1", None)

    def test_more_hosts_that_cannot_are_counted(self, cluster: Cluster, monkeypatch):
        monkeypatch.setenv("DOWN", "127.0.0.1 127.0.0.2")
        with pytest.raises(LaunchFault, match=r"\(and 1 more hosts\)"):
            greet_all(cluster, NODES, "10.0.0.1", None)

    def test_one_machine_under_two_names_is_refused(self, cluster: Cluster, monkeypatch):
        monkeypatch.setenv("SAME", "node1")
        with pytest.raises(LaunchFault, match=r"host 127.0.0.2: is 127.0.0.1 under another name"):
            greet_all(cluster, NODES, "10.0.0.1", None)

    def test_a_host_without_this_directory_python_or_duoflow_is_named_with_its_own_words(self, cluster: Cluster):
        bare = Path(cluster.hosts.directory) / "python"
        bare.write_text("#!/bin/sh\necho 'No module named launch' >&2\nexit 1\n")
        bare.chmod(0o755)
        for change, words in (
            ({"directory": "/nowhere"}, "/nowhere"),
            ({"python": "/nowhere/python"}, "/nowhere/python"),
            ({"python": str(bare)}, "No module named launch"),
        ):
            with pytest.raises(LaunchFault, match=rf"^host 127.0.0.1: .*{words}.*at the same paths as here"):
                replace(cluster.hosts, **change).ask("127.0.0.1", "greet", cluster.run)

    def test_a_run_that_trains_there_already_is_refused(self, cluster: Cluster):
        with _process(cluster) as process:
            with pytest.raises(LaunchFault, match=f"processes {process.pid} are training in"):
                greet_all(cluster, NODES, "10.0.0.1", None)
            process.kill()

    def test_no_path_with_a_character_that_a_shell_reads_gets_as_far_as_ssh(self, cluster: Cluster, asked: Path):
        for run in ("/a b", "/a;id", "/$(id)", "/a'", "/%h"):
            with pytest.raises(LaunchFault, match="the path of the run"):
                cluster.hosts.ask("127.0.0.1", "greet", run)
        assert not asked.exists()


class TestConfiguration:
    def test_it_is_handed_over_once_and_left_alone_where_it_lies_already(self, cluster: Cluster):
        config = b"a: '$(id)'\n"
        # Both hosts share this disk: who comes first writes, and both may have come first.
        assert cluster.hand_over(config)
        assert (Path(cluster.run) / "config.yaml").read_bytes() == config
        assert cluster.hand_over(config) == []
        assert cluster.hand_over(b"a: 2\n")
        assert [path.name for path in Path(cluster.run).iterdir()] == ["config.yaml"]

    def test_the_status_is_that_of_rank_0_s_host(self, cluster: Cluster, monkeypatch):
        assert cluster.status() is None
        Path(cluster.run).mkdir(parents=True)
        (Path(cluster.run) / "status.json").write_text("{}")
        assert cluster.status() == "{}"
        monkeypatch.setenv("DOWN", "127.0.0.1")
        assert cluster.status() is None


class _process:
    """A process that carries a run's mark and stands in its records, as a rank does."""

    def __init__(self, cluster: Cluster, name: str = "sleep") -> None:
        self._cluster, self._name = cluster, name

    def __enter__(self) -> subprocess.Popen[bytes]:
        code = (
            "import sys, time; from pathlib import Path; from launch.processes.ranks import record_rank\n"
            "record_rank(Path(sys.argv[1]) / 'ranks', 0); print('up', flush=True); time.sleep(600)"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT), self._cluster.mark: self._cluster.run}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, self._cluster.run, self._name], env=environment, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class TestStop:
    def test_ranks_get_sigterm_and_hosts_that_are_down_are_passed_over(self, cluster: Cluster, monkeypatch):
        monkeypatch.setenv("DOWN", "127.0.0.2")
        with _process(cluster) as rank:
            assert cluster.live() == ("127.0.0.1",)
            assert cluster.stop()
            assert rank.wait(300) == -signal.SIGTERM
            assert cluster.live() == ()
            assert not cluster.stop()

    def test_a_start_ends_by_its_own_launcher_alone(self, cluster: Cluster):
        with _process(cluster) as rank, _process(cluster, "deepspeed.launcher.launch") as launcher:
            cluster.end()
            assert launcher.wait(300) == -signal.SIGTERM
            assert rank.poll() is None

    def test_every_process_of_the_run_is_killed_and_none_of_another(self, cluster: Cluster):
        other = Cluster(cluster.hosts, f"{cluster.run}2", cluster.mark)
        with _process(cluster) as mine, _process(other) as others:
            assert marked(f"{cluster.mark}={cluster.run}") == [mine.pid]
            cluster.kill()
            assert mine.wait(300) == -signal.SIGKILL
            assert others.poll() is None


class TestAddress:
    def test_an_unknown_host_is_named(self, monkeypatch):
        monkeypatch.setattr(ssh, "addresses", lambda _: [])
        monkeypatch.setattr(ssh, "_configured_name", lambda host, _: host)
        with pytest.raises(LaunchFault, match=r"^hosts: 127.0.0.1: unknown host"):
            master_address(NODES, (), Path("hosts"), None)

    def test_sshs_configuration_may_know_it(self, monkeypatch):
        monkeypatch.setattr(ssh, "addresses", lambda host: {"real1": ["10.0.0.1"], "real2": ["10.0.0.2"]}.get(host, []))
        monkeypatch.setattr(ssh, "_configured_name", lambda host, _: f"real{host[-1]}")
        nodes = (Node("alias1", 1), Node("alias2", 1))
        assert master_address(nodes, (), Path("hosts"), None) == "10.0.0.1"

    def test_the_users_address_stands(self):
        assert master_address(NODES, (), Path("hosts"), "10.9.9.9") == "10.9.9.9"


class TestPod:
    def test_the_code_is_what_this_start_wrote_and_else_the_launchers(self):
        old, new = {"exit_code": 75}, {"exit_code": 2}
        assert pod._code(old, new, 1) == 2
        assert pod._code(old, old, 1) == 1, "a status of an earlier start would start the job again for ever"
        assert pod._code({}, {"exit_code": None}, 0) == 0
        assert pod._code({}, {}, -9) == 137

    def test_a_first_node_that_gets_no_address_is_a_failure(self, capsys):
        words = [
            "--node-rank=0",
            "--hosts=no.such.host.invalid",
            "--slots=1",
            "--port=1",
            "--run=r",
            "--wait-seconds=0",
        ]
        before = signal.getsignal(signal.SIGTERM)
        try:
            assert pod.main([*words, "m", "c"]) == 1
        finally:
            signal.signal(signal.SIGTERM, before)
        assert "no.such.host.invalid: no address after 0 s" in capsys.readouterr().err

    def test_a_node_that_is_none_of_the_hosts_is_a_mistake(self):
        assert pod.main(["--node-rank=2", "--hosts=a,b", "--slots=1", "--port=1", "--run=r", "m", "c"]) == 2

    def test_ranks_start_and_their_status_comes_back(self, tmp_path: Path):
        """The container's command as it is, with a rank of a few lines in the place of the trainer."""
        pytest.importorskip("deepspeed.launcher.launch")
        (tmp_path / "rank.py").write_text(
            "import json, os, sys\n"
            "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')\n"
            "told = {name: os.environ[name] for name in names}\n"
            "open(f'rank{told[\"RANK\"]}', 'w').write(json.dumps([told, sys.argv[2:]]))\n"
            "if told['RANK'] == '3': open('status.json', 'w').write(json.dumps({'exit_code': 75}))\n"
        )
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "DS_ACCELERATOR": "cpu"}
        where = ["--node-rank=1", "--hosts=localhost,other", "--slots=2", "--port=4321", f"--run={tmp_path}"]
        done = subprocess.run(
            [sys.executable, "-m", "launch.pod", *where, "rank", "c.yaml"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 75, done.stderr
        told = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (2, 3)]
        assert told[1] == [
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "4321"},
            ["c.yaml"],
        ]
