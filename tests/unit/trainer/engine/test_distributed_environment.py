"""Devices and interfaces as the environment asks for them, and what a process alone does without any group."""

import pytest
import torch

from shards.errors import ConfigError, DataError
from trainer.engine import distributed
from trainer.engine.distributed import World, check_nccl, device_type


@pytest.fixture
def environment(monkeypatch):
    for name in ("DS_ACCELERATOR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


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


@pytest.mark.parametrize(("address", "expected"), [(None, None), ("10.0.0.5", "eth7"), ("10.0.0.6", None)])
def test_gloo_is_led_to_the_interface_that_the_other_hosts_reach(environment, address, expected):
    environment.setattr(distributed, "interface_with_address", {"10.0.0.5": "eth7"}.get)
    environment.setenv("GLOO_SOCKET_IFNAME", "put back by the fixture")
    environment.delenv("GLOO_SOCKET_IFNAME")
    distributed._lead_gloo(address)
    assert distributed.os.environ.get("GLOO_SOCKET_IFNAME") == expected


def test_an_interface_that_the_user_chose_is_kept(environment):
    environment.setenv("GLOO_SOCKET_IFNAME", "ib0")
    environment.setattr(distributed, "interface_with_address", lambda _: "eth7")
    distributed._lead_gloo("10.0.0.1")
    assert distributed.os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_messages_name_the_host_of_a_rank_where_there_are_several():
    assert World(rank=1, world_size=2, hosts=("fvn1", "fvn2")).name == "rank 1 on fvn2"
    assert World(rank=1, world_size=2, hosts=("fvn1", "fvn1")).name == "rank 1"
    assert World().name == "rank 0"


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


@pytest.mark.parametrize("name", ["TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING"])
def test_ranks_that_would_go_on_without_what_a_lost_one_owes_them_are_refused(name: str):
    for allowed in ({}, {name: "1"}, {name: "3"}):
        check_nccl(allowed)
    for value in ("0", "2"):
        with pytest.raises(ConfigError, match=rf"^{name}={value}: a rank whose collective has failed would go on"):
            check_nccl({name: value})
