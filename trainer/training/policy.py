"""The ZeRO policy of a run: the file that its recipe names, or one that is chosen for what trains it."""

import json
import logging
import os
from collections import Counter
from typing import Any

import torch

from launch.network import address_towards
from trainer.config import RunConfig
from trainer.config.schema import check_world_size, policy_path
from trainer.engine.addresses import interface_with_address
from trainer.engine.deepspeed_config import Precision, read_policy
from trainer.engine.distributed import World
from trainer.engine.link_speed import link_gbits
from trainer.engine.policy_choice import AUTO, Choice, Circumstances, choose_policy

logger = logging.getLogger(__name__)


def settle_policy(config: RunConfig, world: World, *, parameters: int, precision: Precision) -> dict[str, Any]:
    """The policy that every rank trains under; collective. A choice is logged with its reason.

    Args:
        parameters: trained ones.

    Raises:
        ConfigError: the file cannot be taken.
    """
    if config.engine.policy != AUTO:
        return read_policy(policy_path(config))
    own = {
        "host": os.uname().nodename,
        "link": _link(config, os.environ.get("MASTER_ADDR")),
        "memory": _memory(world.device),
    }
    told = world.gather_text(json.dumps(own))
    chosen = None
    if told is not None:
        ranks = [json.loads(text) for text in told]
        links = [rank["link"] for rank in ranks if rank["link"] is not None]
        hosts = Counter(rank["host"] for rank in ranks)
        choice = choose_policy(
            _circumstances(
                config,
                parameters=parameters,
                precision=precision,
                ranks=world.world_size,
                hosts=len(hosts),
                device_type=world.device.type,
                memory_bytes=min(_share(rank["memory"], world.device.type, hosts[rank["host"]]) for rank in ranks),
                link=min(links, default=None),
            )
        )
        chosen = json.dumps(choice._asdict())
    choice = Choice(**json.loads(world.broadcast_text(chosen)))
    logger.info("engine.policy: auto chose %s", choice)
    return choice.policy


def choice_on_this_machine(
    config: RunConfig, *, parameters: int, precision: Precision, ranks: int, device_type: str
) -> Choice:
    """What `auto` will choose if all ranks are on this machine."""
    return choose_policy(
        _circumstances(
            config,
            parameters=parameters,
            precision=precision,
            ranks=ranks,
            hosts=1,
            device_type=device_type,
            memory_bytes=_share(_memory(torch.device(device_type)), device_type, ranks),
            link=None,
        )
    )


def _circumstances(
    config: RunConfig,
    *,
    parameters: int,
    precision: Precision,
    ranks: int,
    hosts: int,
    device_type: str,
    memory_bytes: int,
    link: float | None,
) -> Circumstances:
    return Circumstances(
        optimizer=config.optim.choice,
        parameters=parameters,
        element_bytes=4 if precision == "fp32" else 2,
        accumulation=check_world_size(config, ranks),
        ranks=ranks,
        hosts=hosts,
        device_type=device_type,
        memory_bytes=memory_bytes,
        link_gbits=link,
    )


def _link(config: RunConfig, master_address: str | None) -> float | None:
    """Gbit/s of this host: the recipe's word, or else the system's."""
    if config.engine.link_gbits is not None:
        return config.engine.link_gbits
    address = address_towards(master_address) if master_address else None
    interface = None if address is None else interface_with_address(address)
    return link_gbits(interface)


def _memory(device: torch.device) -> int:
    """Bytes of this rank's GPU, or of this host."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _share(memory: int, device_type: str, ranks_on_host: int) -> int:
    """What a rank has of it: a GPU belongs to one."""
    return memory if device_type == "cuda" else memory // ranks_on_host
