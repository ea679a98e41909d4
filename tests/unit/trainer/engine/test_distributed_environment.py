"""What a process concludes from the launcher's environment, and what a process alone does without any group."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shards.errors import ConfigError, DataError
from trainer.engine import distributed
from trainer.engine.distributed import World, device_type, interface_with_address, read_environment

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture
def environment(monkeypatch):
    for name in (*NAMES, "DS_ACCELERATOR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_all(environment, *values: str) -> None:
    for name, value in zip(NAMES, values, strict=True):
        environment.setenv(name, value)


def test_without_a_launcher_a_process_is_alone(environment):  # noqa: ARG001 (it clears the variables)
    assert read_environment() == (0, 0, 1)


def test_the_launchers_numbers_are_taken(environment):
    set_all(environment, "5", "8", "1")
    assert read_environment() == (5, 1, 8)


@pytest.mark.parametrize(
    "values", [("8", "8", "0"), ("-1", "8", "0"), ("0", "8", "-1"), ("0", "0", "0"), ("a", "8", "0")]
)
def test_numbers_that_contradict_each_other_are_refused(environment, values):
    set_all(environment, *values)
    with pytest.raises(ConfigError, match="environment: "):
        read_environment()


@pytest.mark.parametrize("missing", NAMES)
def test_half_an_environment_is_refused_rather_than_completed(environment, missing):
    set_all(environment, "0", "2", "0")
    environment.delenv(missing)
    with pytest.raises(ConfigError, match="must all be integers"):
        read_environment()


def test_the_accelerator_is_chosen_as_deepspeed_chooses_it(environment):
    environment.setattr(torch.cuda, "is_available", lambda: True)
    assert device_type() == "cuda"
    environment.setenv("DS_ACCELERATOR", "cpu")
    assert device_type() == "cpu"


def test_more_ranks_than_gpus_are_refused_with_the_number_of_gpus(environment):
    environment.setenv("DS_ACCELERATOR", "cuda")
    environment.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=2: this node shows 2 GPUs; start one rank per GPU"):
        distributed._claim_device(2)


def test_the_loopback_interface_is_found_by_its_address():
    assert interface_with_address("127.0.0.1") == "lo"
    assert interface_with_address("192.0.2.1") is None, "an address of the documentation range is nobody's"


@pytest.mark.parametrize(
    ("own", "master", "expected"),
    [("127.0.1.1", "127.0.0.1", None), ("10.0.0.5", "10.0.0.1", None), ("127.0.1.1", "10.0.0.1", "eth7")],
)
def test_gloo_is_led_off_the_loopback_only_between_nodes(environment, own, master, expected):
    environment.setattr(distributed.socket, "gethostname", lambda: "own")
    environment.setattr(distributed.socket, "gethostbyname", {"own": own, "master": master}.__getitem__)
    environment.setattr(distributed, "address_towards", lambda _: "10.0.0.5")
    environment.setattr(distributed, "interface_with_address", {"10.0.0.5": "eth7"}.get)
    environment.setenv("GLOO_SOCKET_IFNAME", "unset")
    environment.delenv("GLOO_SOCKET_IFNAME")
    distributed._choose_gloo_interface("master")
    assert distributed.os.environ.get("GLOO_SOCKET_IFNAME") == expected


def test_an_interface_that_the_user_chose_is_kept(environment):
    environment.setenv("GLOO_SOCKET_IFNAME", "ib0")
    environment.setattr(distributed.socket, "gethostbyname", {"master": "10.0.0.1"}.__getitem__)
    distributed._choose_gloo_interface("master")
    assert distributed.os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_a_process_alone_needs_no_process_group():
    world = World()
    world.barrier("anything")
    assert world.any_rank(True) is True
    assert world.sum_across_ranks([1, 2.5]).tolist() == [1.0, 2.5]
    assert world.broadcast_text("ä") == "ä"
    assert world.gather_text("x") == ["x"]
    world.agree_or_raise(None)
    with pytest.raises(DataError, match=r"^broken$"):
        world.agree_or_raise(DataError("broken"))


def test_sums_are_taken_in_double_precision_and_leave_the_argument_alone():
    values = torch.tensor([1.0, 2.0], dtype=torch.float32)
    total = World().sum_across_ranks(values)
    assert total.dtype == torch.float64
    total += 1
    assert values.tolist() == [1.0, 2.0]


LEAVING = """
import atexit
import os
from trainer.engine.process import leave

class TakenDown:
    def __del__(self, write=os.write):
        write(1, b" taken down")

taken_down = TakenDown()
atexit.register(lambda: print(" registered", end=""))
print("printed", end="")
leave(3)
"""


def test_leaving_does_what_is_registered_and_does_not_take_the_interpreter_down():
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, cwd=Path(__file__).parents[4])
    assert (done.returncode, done.stdout, done.stderr) == (3, b"printed registered", b"")
