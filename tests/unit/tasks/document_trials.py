"""A model that reads documents, built in this process over tiny shards of them."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shards.plan import Share
from shards.read.loader import Loader
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import EvaluationBatches, TrainingBatches
from tests.thread_ranks import on_ranks
from trainer.build import assemble_model, make_texts, open_split
from trainer.config import RunConfig, load_config
from trainer.engine.distributed import World
from trainer.tasks import task_named
from trainer.training.validate import Evaluation, evaluate

METRIC = "early_stopping.metric=val/anls"


class Reader:
    """A small model over small documents, with noise on what it trains."""

    def __init__(self, recipe: Path, *overrides: str) -> None:
        self.config: RunConfig = load_config(recipe, (METRIC, "batch.visits=4", *overrides))
        self.train, self.val = (open_split(self.config, split) for split in ("train", "val"))
        self.built = assemble_model(self.config, scratch_tokenizer=lambda: pytest.fail("it has its own"))
        self.objective = self.built.objective
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # an adapter begins with 0, and changes nothing
            for parameter in self.objective.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        self.objective.eval()

    def step(self, number: int, *, world_size: int = 1, micro_visits: int = 4) -> list[MicroBatch]:
        """The micro-batches of all ranks for a step of the first epoch."""
        found = []
        for rank in range(world_size):
            share = Share(rank=rank, world_size=world_size, micro_visits=micro_visits)
            batches = TrainingBatches(self.train, make_texts(self.config, self.built), None, share)
            found += [batches.prepare(0, number, micro) for micro in range(batches.accumulation)]
        return found

    def loss_and_gradients(self, batches: Sequence[MicroBatch]) -> tuple[float, dict[str, Tensor]]:
        """As the engine has them, which averages over ranks and micro-batches."""
        self.objective.zero_grad(set_to_none=True)
        total = 0.0
        for item in batches:
            loss = self.objective(item.batch).loss / len(batches)
            loss.backward()
            total += float(loss.detach())
        return total, {name: parameter.grad.clone() for name, parameter in self.objective.named_parameters()}

    def evaluation(self, *, world_size: int = 1, micro_visits: int = 2) -> list[Evaluation]:
        """What each rank gets of the validation split."""

        def of_rank(world: World) -> Evaluation:
            share = Share(rank=world.rank, world_size=world_size, micro_visits=micro_visits)
            batches = EvaluationBatches(self.val, make_texts(self.config, self.built), None, share)
            loader, task = Loader(batches, workers=0, pin_memory=False), task_named(self.config.task)
            found = evaluate(self.objective, self.built, batches, loader, world, task=task, losses=self.config.losses)
            assert found is not None
            return found

        return on_ranks(world_size, of_rank)


def same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in one[1].values())
    for name, gradient in one[1].items():
        assert float((gradient - other[1][name]).abs().max()) < 1e-5 * largest, name
