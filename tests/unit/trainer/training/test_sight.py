"""A run says when its answers do not depend on the images, and only then."""

import logging
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.build import BuiltModel
from model.objective import EvaluationOutput
from shards.plan import Share
from shards.read.collate import Batch
from shards.read.loader import Loader
from shards.read.micro_batches import EvaluationBatches
from tests.corpora import build_corpus
from tests.runs import Project, write_recipe, write_shards
from tests.thread_ranks import on_ranks
from trainer.build import image_size, make_texts, open_split
from trainer.engine.distributed import World
from trainer.tasks import task_named
from trainer.training.sight import SightWatch

Key = tuple[bytes, bytes]
"""The pixels and the words that a row sees."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    home = tmp_path_factory.mktemp("project")
    val, _ = build_corpus(home / "many", num_images=40, seed=1)
    return Project(write_recipe(home / "tiny.yaml", write_shards(home) | {"val": str(val)}))


@pytest.fixture(scope="module")
def built(project: Project) -> BuiltModel:
    return project.model()


class Knows:
    """In an objective's place: answers what is known of pixels and words, and otherwise what is never right."""

    def __init__(self, known: dict[Key, str], built: BuiltModel, look: Callable[[Key], Key]) -> None:
        self.known, self.built, self.look = known, built, look

    def evaluate(self, batch: Batch) -> EvaluationOutput:
        answers = [self.known.get(self.look(key), "what") for key in keys(batch)]
        ids = self.built.answer_codec.answers(answers)
        padded = torch.full((len(ids), 8), self.built.answer_codec.end_id)
        for row, own in enumerate(ids):
            padded[row, : len(own)] = torch.tensor(own)
        return EvaluationOutput(torch.zeros(1), {"answer": padded})


def keys(batch: Batch) -> list[Key]:
    ask = batch.blocks["ask"]
    words = [ids[mask].numpy().tobytes() for ids, mask in zip(ask.ids, ask.mask, strict=True)]
    return [(seen(batch.shown[image]), text) for image, text in zip(ask.image.tolist(), words, strict=True)]


def seen(pixels: Tensor) -> bytes:
    return pixels.numpy().tobytes()


def watched(
    project: Project,
    built: BuiltModel,
    look: Callable[[Key], Key],
    *,
    world_size: int = 1,
    times: int = 1,
    micro_visits: int = 2,
) -> SightWatch:
    """What rank 0 has to say after so many validations."""
    config = project.config()
    split = open_split(config, "val")

    def of_rank(world: World) -> SightWatch:
        share = Share(rank=world.rank, world_size=world.world_size, micro_visits=micro_visits)
        batches = EvaluationBatches(split, make_texts(config, built), image_size(config, built), share)
        loader, watch = Loader(batches, workers=0, pin_memory=False), SightWatch()
        known = {
            look(key): question.answer
            for item in loader.batches(batches.all_keys())
            for key, question in zip(keys(item.batch), item.items, strict=False)
        }
        for _ in range(times):
            watch.look(Knows(known, built, look), built, batches, loader, world, task_named("gqa"))
        return watch

    return on_ranks(world_size, of_rank)[0]


def lines(watch: SightWatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        watch.report()
    return caplog.messages


@pytest.mark.parametrize(("world_size", "micro_visits"), [(1, 2), (2, 2), (1, 1), (2, 1)])
def test_who_answers_by_the_words_alone_is_named(
    project: Project, built: BuiltModel, world_size: int, micro_visits: int, caplog: pytest.LogCaptureFixture
):
    sizes = {"world_size": world_size, "micro_visits": micro_visits}
    (line,) = lines(watched(project, built, lambda key: (b"", key[1]), times=2, **sizes), caplog)
    assert "do not depend on the images yet" in line
    own, others = map(float, re.findall(r"([\d.]+) %", line))
    assert own == others > 0


@pytest.mark.parametrize("micro_visits", [1, 2])
def test_who_looks_is_not_and_is_not_asked_again(
    project: Project, built: BuiltModel, micro_visits: int, caplog: pytest.LogCaptureFixture
):
    watch = watched(project, built, lambda key: key, micro_visits=micro_visits)
    assert lines(watch, caplog) == []
    watch.look(None, None, None, None, None, None)  # nothing is evaluated any more
    assert lines(watch, caplog) == []


def test_of_a_handful_of_questions_nothing_is_said(
    project: Project, built: BuiltModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    watch = watched(project, built, lambda key: (b"", key[1]))
    (line,) = lines(watch, caplog)
    (questions,) = map(int, re.findall(r"\((\d+) questions\)", line))
    monkeypatch.setattr("trainer.training.sight.LEAST_QUESTIONS", questions + 1)
    assert lines(watch, caplog) == []
