"""A task with some of its losses, built in this process over tiny shards of its own format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from model.build import BuiltModel
from model.objective import Objective
from model.parts import PARTS
from shards.plan import Share
from shards.read.collate import Batch, collate
from shards.read.eyes import eyes_for
from shards.read.loader import Loader
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import EvaluationBatches, Split, TrainingBatches
from shards.tasks import TASKS
from shards.tasks.seam import Draw, Visit
from tests.task_corpora import MORE_CORPORA, task_of, task_recipe
from tests.thread_ranks import on_ranks
from trainer.build import assemble_model, classes_of, image_size, make_texts, open_split, training_tokenizer
from trainer.config import RunConfig, load_config
from trainer.engine.distributed import World
from trainer.tasks import task_named
from trainer.training.validate import Evaluation, evaluate

NOISE = 0.2
"""Added to every weight, so that different texts and images lead to different outputs."""

VARIANTS = {
    "vqa": (
        ("losses.answer_tokens=sum", "answers.by=rank", "answers.candidates=3"),
        ("losses.classify=0.5", "answers.by=classify", "losses.genome=0.25"),
    ),
    "nlvr2": (("model.head=albef",),),
}
"""What else of a task's own is tried, beside its losses."""


@dataclass(frozen=True)
class Choice:
    """Files of a task, and what its recipe says of losses and answers."""

    corpus: str
    overrides: tuple[str, ...]

    @property
    def task(self) -> str:
        return task_of(self.corpus)

    def __str__(self) -> str:
        return "-".join((self.corpus, *(text.partition(".")[2] for text in self.overrides)))


def choices() -> list[Choice]:
    """Every task with every choice of its losses, and its variants."""
    found = []
    for name, task in TASKS.items():
        if task.images is None:  # a fusion stacks images; what reads documents has tests of its own
            continue
        parts = [part for part in PARTS if part in task.reads]
        for size in range(1, len(parts) + 1):
            for chosen in combinations(parts, size):
                weights = [
                    f"losses.{part}={0.5 + number if part in chosen else 0}" for number, part in enumerate(parts)
                ]
                found.append(Choice(name, tuple(weights) if len(parts) > 1 else ()))
        found += [Choice(name, overrides) for overrides in VARIANTS.get(name, ())]
    return [*found, *(Choice(corpus, ()) for corpus in MORE_CORPORA)]


@dataclass(frozen=True)
class Trial:
    """It, built."""

    config: RunConfig
    built: BuiltModel
    train: Split
    val: Split

    @classmethod
    def of(cls, directory: Path, choice: Choice, data: dict[str, str]) -> "Trial":
        recipe = task_recipe(directory / f"{choice.corpus}.yaml", choice.corpus, data)
        by_loss = ("early_stopping.metric=val/loss", "early_stopping.mode=min")  # which every choice records
        config = load_config(recipe, (*choice.overrides, *by_loss))
        train = open_split(config, "train")
        built = assemble_model(
            config,
            scratch_tokenizer=lambda: training_tokenizer(config, train),
            classes=classes_of(config, train.index),
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in built.objective.parameters():
                parameter += NOISE * torch.randn(parameter.shape, generator=generator)
        built.objective.eval()
        return cls(config, built, train, open_split(config, "val"))

    @property
    def objective(self) -> Objective:
        return self.built.objective

    def training(self, share: Share) -> TrainingBatches:
        return TrainingBatches(self.train, make_texts(self.config, self.built), self._size, share)

    def evaluating(self, share: Share) -> EvaluationBatches:
        return EvaluationBatches(self.val, make_texts(self.config, self.built), self._size, share)

    def step(self, step: int, *, world_size: int = 1, micro_visits: int | None = None) -> list[MicroBatch]:
        """The micro-batches of all ranks for a step of the first epoch; without a size each rank has a single one."""
        micro = micro_visits or self.config.batch.visits // world_size
        found = []
        for rank in range(world_size):
            batches = self.training(Share(rank=rank, world_size=world_size, micro_visits=micro))
            found += [batches.prepare(0, step, number) for number in range(batches.accumulation)]
        return found

    def items_alone(self, step: int) -> Iterator[Batch]:
        """Every item of a step in a batch of its own, with loss scales that make their losses add up to the step's."""
        order, reader, texts = self.train.epoch(0), self.train.reader, make_texts(self.config, self.built)
        task, eyes = TASKS[self.config.task], eyes_for(self.train.index, self._size)
        for visit in order.step(step).ravel():
            if visit < 0:
                continue
            sample = int(order.visits.image[visit])
            first, items = int(self.train.visits.first_question[sample]), reader.sample(sample).items
            shown = [eyes.see(data, "an image") for data in reader.images(sample)]
            for position in order.questions(visit).tolist():
                alone = Visit(sample, [items[position]], [first + position])
                rows = task.rows(alone, Draw(order, self.train.index, reader), texts.wanted)
                scale = 1 / order.questions_in_step(step)
                sizes = {"blank": eyes.blank, "images_per_visit": [task.images]}
                layouts = texts.collation.layouts
                yield collate(shown, [rows.blocks], layouts, items_per_visit=[1], loss_scale=scale, **sizes)[0]

    def evaluation(self, *, world_size: int = 1, micro_visits: int = 4) -> list[Evaluation]:
        """What each rank gets from an evaluation of the validation split."""

        def of_rank(world: World) -> Evaluation:
            batches = self.evaluating(Share(rank=world.rank, world_size=world_size, micro_visits=micro_visits))
            loader, task = Loader(batches, workers=0, pin_memory=False), task_named(self.config.task)
            given = {"task": task, "losses": self.config.losses}
            found = evaluate(self.objective, self.built, batches, loader, world, **given)
            assert found is not None
            return found

        return on_ranks(world_size, of_rank)

    @property
    def _size(self) -> int:
        return image_size(self.config, self.built)


def sums_of(objective: Objective, batches: Sequence[MicroBatch]) -> tuple[float, list[float]]:
    """The loss of a step as the engine has it, which averages over ranks and micro-batches; and its summed sums."""
    with torch.no_grad():
        outputs = [objective(item.batch) for item in batches]
    loss = sum(float(output.loss) for output in outputs) / len(outputs)
    return loss, torch.stack([output.sums.double() for output in outputs]).sum(dim=0).tolist()


def gradients_of(objective: Objective, batches: Sequence[Batch], *, parts: int = 1) -> tuple[float, dict[str, Tensor]]:
    """The loss over some batches, and its gradients by parameter; both are divided by `parts`."""
    objective.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = objective(batch).loss / parts
        loss.backward()
        total += float(loss.detach())
    found = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in objective.named_parameters()
    }
    objective.zero_grad(set_to_none=True)
    return total, found
