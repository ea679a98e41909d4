"""A micro-step asks its device nothing: on a GPU every question would wait until all that was launched is done."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models import random_batch, tiny_model

FROZEN = ("vision", "second_stream", "match", "answer")
LORA = {"rank": 2, "targets": ["query"]}
ASKS = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal", "aten.item"}
COPIES = {"aten.lift_fresh"}
"""A tensor made of Python's numbers: on a GPU a copy that blocks."""
VARIANTS: dict[str, dict[str, Any]] = {
    "all trained": {},
    "all frozen": {"freeze": FROZEN},
    "second blip": {"freeze": FROZEN, "second_stream": "blip"},
    "lora": {"freeze": FROZEN, "lora": {"match": LORA, "answer": LORA}},
    "recomputed": {"freeze": FROZEN, "gradient_checkpointing": True},
}


class Listener(TorchDispatchMode):
    """Notes the operations that a GPU could only answer by waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.replace("::", ".")
        if name in ASKS | COPIES:
            self.heard.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_and_backward_wait_for_nothing(name: str) -> None:
    objective, batch = tiny_model(**VARIANTS[name]).objective, random_batch((3, 2))
    objective(batch).loss.backward()  # what is done once, at first, may wait
    with Listener() as listener:
        objective(batch).loss.backward()
    assert listener.heard == set()


@pytest.mark.parametrize("ask", [lambda x: x.sum().item(), lambda x: x + torch.tensor([1.0]), lambda x: x.nonzero()])
def test_the_listener_hears_what_waits(ask: Any) -> None:
    with Listener() as listener:
        ask(torch.ones(2))
    assert listener.heard
