"""Bytes of a micro-batch without values, against those that torch really keeps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from model.build import BuiltModel
from model.config import LossConfig
from model.cost.largest import largest_batch
from model.cost.memory import simulate
from model.fusion_objective import FusionObjective
from shards.read.collate import Batch
from shards.tasks import TASKS
from tests.models import random_batch, tiny_model

FROZEN = ("vision", "second_stream", "match", "answer")
LORA = {"rank": 2, "targets": ["query"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "all trained": {},
    "all frozen": {"freeze": FROZEN},
    "recomputed": {"freeze": FROZEN, "gradient_checkpointing": True},
    "lora": {"freeze": FROZEN, "lora": {"match": LORA, "answer": LORA}},
    "single stream": {"freeze": FROZEN, "second_stream": "none"},
}


def kept(objective: FusionObjective, batch: Batch) -> int:
    """Bytes that autograd holds after a forward pass, each storage once, parameters and inputs left out."""
    towers = (objective, *(tower for _, tower in objective.frozen_towers()))
    known = {
        value.untyped_storage().data_ptr() for tower in towers for value in (*tower.parameters(), *tower.buffers())
    }
    known |= {
        part.untyped_storage().data_ptr() for block in batch.blocks.values() for part in block if torch.is_tensor(part)
    }
    held: dict[int, torch.UntypedStorage] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage  # alive, so that no other gets its address
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        output = objective(batch)
    assert output.loss.requires_grad
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_kept_for_the_backward_pass(name: str) -> None:
    objective, batch = tiny_model(**VARIANTS[name]).objective, random_batch((4, 2, 4))
    found = simulate(objective, batch)
    if name != "recomputed":  # its inputs are kept by the function that recomputes, which these hooks do not see
        assert found.total_kept == pytest.approx(kept(objective, batch), rel=0.1)
    assert found.peak >= found.total_kept
    assert {"fusion", "match", "answer"} <= found.kept.keys()


def test_neither_the_model_nor_its_gradients_change() -> None:
    objective, batch = tiny_model().objective, random_batch((2, 3))
    before = {name: value.clone() for name, value in objective.named_parameters()}
    state, parameters = torch.get_rng_state(), dict(objective.named_parameters())
    simulate(objective, batch, dtype=torch.bfloat16)
    assert dict(objective.named_parameters()) == parameters  # the very same tensors
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in parameters.items())
    assert torch.equal(torch.get_rng_state(), state)
    objective(batch).loss.backward()  # and it still computes


def test_recomputing_more_keeps_less_and_half_precision_about_half() -> None:
    batch = random_batch((6, 6))
    plain, some, sparing = (
        tiny_model(freeze=FROZEN, gradient_checkpointing=share).objective for share in (False, 0.5, True)
    )
    whole = simulate(plain, batch)
    assert simulate(sparing, batch).total_kept < 0.6 * whole.total_kept
    assert simulate(sparing, batch).total_kept < simulate(some, batch).total_kept < whole.total_kept
    assert simulate(plain, batch, dtype=torch.bfloat16).total_kept < 0.7 * whole.total_kept


def largest(built: BuiltModel, visits: int) -> Batch:
    sizes = {"questions_per_visit": 3, "rows_per_question": 3, "max_question_tokens": 16, "max_answer_tokens": 6}
    return largest_batch(built, TASKS["gqa"], visits=visits, image_size=32, **sizes)


def test_the_largest_micro_batch_is_as_full_as_the_limits_allow() -> None:
    batch = largest(tiny_model(), 2)
    ask, match = batch.blocks["ask"], batch.blocks["match"]
    assert ask.ids.shape == (6, 16)
    assert bool(ask.mask.all())
    assert len(match.ids) == 18
    assert match.rows_per_image == 9
    assert len(batch.shown) == 2


def test_a_question_that_several_people_answered_has_all_their_answers() -> None:
    sizes = {"questions_per_visit": 2, "rows_per_question": 1, "max_question_tokens": 16, "max_answer_tokens": 6}
    built = tiny_model(losses=LossConfig(itm=0.0))
    answered = replace(built.layouts["ask"], block=TASKS["vqa"].blocks["ask"])
    batch = largest_batch(built._replace(layouts={"ask": answered}), TASKS["vqa"], visits=1, image_size=32, **sizes)
    assert len(batch.blocks["ask"].targets.ids) == 2 * 10


def test_each_visit_adds_as_much_as_the_one_before() -> None:
    built = tiny_model(freeze=FROZEN)
    one, two, five = (simulate(built.objective, largest(built, visits)).peak for visits in (1, 2, 5))
    assert five == pytest.approx(one + 4 * (two - one), rel=0.02)
