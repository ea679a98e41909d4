"""DeepSpeed's flags pass; what DuoFlow answers itself is refused with the one who answers it."""

import pytest

from launch.plan.flags import Flags, read_flags
from launch.plan.words import LaunchFault


def test_address_port_and_ssh_port_are_taken_out_and_the_rest_is_passed_on():
    flags = read_flags(["--master_port=4321", "--master_addr", "10.0.0.1", "--ssh_port=2222", "--bind_cores_to_rank"])
    assert flags == Flags(
        ["--ssh_port=2222", "--bind_cores_to_rank", "--log_level=error"], port=4321, address="10.0.0.1", ssh_port=2222
    )


def test_the_runner_is_quiet_unless_it_is_asked():
    assert [read_flags(words).rest for words in ([], ["--log_level=debug"], ["-q"])] == [
        ["--log_level=error"],
        ["--log_level=debug"],
        ["--quiet"],
    ]


@pytest.mark.parametrize(
    ("word", "owner"),
    [
        ("--hostfile=x", "--hostfile F"),
        ("-Hx", "--hostfile F"),
        ("--include=a:0", "hostfile"),
        ("-i", "hostfile"),
        ("--exclude", "hostfile"),
        ("--num_gpus=2", "hostfile"),
        ("--num_nodes=2", "hostfile"),
        ("--node_rank=0", "--no-ssh"),
        ("--no_ssh", "--no-ssh"),
        ("--launcher=slurm", "duoflow launch slurm"),
        ("--launcher_args=-x", "PDSH_SSH_ARGS_APPEND"),
        ("--module", "trainer.train"),
        ("--autotuning=run", "recipe"),
    ],
)
def test_owned_flags_name_their_owner(word: str, owner: str):
    with pytest.raises(LaunchFault, match=owner):
        read_flags([word])


@pytest.mark.parametrize(
    "words",
    [
        ["--nonsense"],
        ["train.py"],
        ["--master_port=http"],
        ["--master_port=0"],
        ["--ssh_port=70000"],
        ["--master_addr=$(id)"],
        ["--venv_script=/a b/activate"],
        ["--enable_each_rank_log=logs;id"],
        ["--bind_core_list=0-3;id"],
        ["--log_level=loud"],
    ],
)
def test_other_words_and_hostile_values_are_one_line(words: list[str]):
    with pytest.raises(LaunchFault) as fault:
        read_flags(words)
    assert "\n" not in str(fault.value)


def test_every_flag_of_the_installed_runner_is_known_here():
    """A flag that a new DeepSpeed brings is sorted by somebody, not passed through or refused by chance."""
    from launch.plan import flags

    runner = pytest.importorskip("deepspeed.launcher.runner")
    positional = {"user_script", "user_args"}
    theirs = {f"--{name}" for name in vars(runner.parse_args(["x"])) if name not in positional}
    passed = {"--master_port", "--master_addr", "--ssh_port", "--save_pid", "--bind_cores_to_rank", "--bind_core_list"}
    passed |= {"--enable_each_rank_log", "--venv_script", "--log_level", "--quiet"}
    assert theirs == (passed | flags._OWNED.keys()) - {"--num_accelerators"}
