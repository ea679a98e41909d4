"""One plan, one command per node; every renderer says the same of ranks, address, port and configuration."""

import base64
import json

import pytest

from launch.plan.forward import environment_file, runner_environment
from launch.plan.launch_plan import LaunchPlan, Node, node_commands, pdsh_argv, typed_commands, world_info
from launch.render.show import shown_pdsh, shown_typed
from tests.unit.launch.render.golden import check_golden

HOSTFILE, CONFIG = "/work/runs/a/launch/hostfile", "/work/runs/a/config.yaml"
PLAN = LaunchPlan(
    nodes=(Node("node1", 2), Node("node2", 2)),
    address="10.0.0.1",
    port=20_001,
    module="trainer.train",
    arguments=(CONFIG,),
    python="/opt/python",
    environment={"OMP_NUM_THREADS": "4", "DUOFLOW_OCCUPIED": "/work/runs/a"},
)


def test_there_is_a_command_for_each_node_and_it_differs_in_the_rank_of_the_node_alone():
    first, second = node_commands(PLAN)
    assert (first.node, second.node) == ("node1", "node2")
    different = [pair for pair in zip(first.argv, second.argv, strict=True) if pair[0] != pair[1]]
    assert different == [("--node_rank=0", "--node_rank=1")]
    assert first.environment == second.environment == dict(PLAN.environment)


def test_what_travels_to_a_rank_is_the_path_of_its_configuration():
    commands = [command.argv for command in node_commands(PLAN)] + [pdsh_argv(PLAN, HOSTFILE)]
    for argv in commands + [command.argv for command in typed_commands(PLAN, HOSTFILE)]:
        assert argv[-3:] == ["--module", "trainer.train", CONFIG]
        assert {"--master_addr=10.0.0.1", "--master_port=20001"} < set(argv)


def test_the_world_is_the_slots_of_all_nodes():
    assert (PLAN.slots, PLAN.world_size) == (2, 4)


def test_nodes_with_different_slots_are_no_plan():
    with pytest.raises(AssertionError, match="equal slots"):
        LaunchPlan(nodes=(Node("a", 1), Node("b", 2)), address="a", port=1, module="m", arguments=(), python="python")


def test_chosen_devices_are_what_the_node_launcher_makes_visible():
    (node,) = [Node("localhost", 2, ("5", "7"))]
    assert json.loads(base64.urlsafe_b64decode(world_info([node]))) == {"localhost": [5, 7]}


class TestDeepSpeedReadsIt:
    def test_the_runner_reads_the_command_of_pdsh(self):
        runner = pytest.importorskip("deepspeed.launcher.runner")
        read = runner.parse_args(pdsh_argv(PLAN, HOSTFILE, ["--ssh_port=2222"])[3:])
        assert (read.hostfile, read.master_addr, read.master_port) == (HOSTFILE, "10.0.0.1", 20_001)
        assert (read.launcher, read.force_multi, read.no_ssh_check, read.ssh_port) == ("pdsh", True, True, 2222)
        assert (read.user_script, read.user_args, read.module) == ("trainer.train", [CONFIG], True)

    def test_the_runner_reads_a_command_that_is_typed(self):
        runner = pytest.importorskip("deepspeed.launcher.runner")
        for rank, command in enumerate(typed_commands(PLAN, HOSTFILE)):
            read = runner.parse_args(command.argv[3:])
            assert (read.no_ssh, read.node_rank, read.master_port) == (True, rank, 20_001)

    def test_the_node_launcher_reads_the_command_of_a_node(self, monkeypatch):
        launcher = pytest.importorskip("deepspeed.launcher.launch")
        argv = node_commands(PLAN)[1].argv
        monkeypatch.setattr("sys.argv", argv[3:])
        read = launcher.parse_args()
        assert (read.node_rank, read.master_addr, read.master_port) == (1, "10.0.0.1", 20_001)
        assert (read.training_script, read.training_script_args, read.module) == ("trainer.train", [CONFIG], True)
        assert json.loads(base64.urlsafe_b64decode(read.world_info)) == {"node1": [0, 1], "node2": [0, 1]}


def test_what_a_dry_run_shows():
    files = {HOSTFILE: "node1 slots=2\nnode2 slots=2\n", "/work/runs/a/env": environment_file(PLAN.environment)}
    given = runner_environment({}, PLAN.environment, "/work/runs/a/env")
    check_golden("pdsh.txt", shown_pdsh(PLAN, pdsh_argv(PLAN, HOSTFILE), files, given, "/work"))


def test_what_is_typed_on_each_node():
    check_golden("typed.txt", shown_typed(PLAN, HOSTFILE, "/work"))
