"""An evaluation gives the same numbers over any number of ranks, and every question one answer."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from model.build import BuiltModel
from model.config import LossConfig
from model.parts import PARTS, sum_names
from shards.build.writer import build_shards
from shards.plan import Share
from shards.read.loader import Loader
from shards.read.micro_batches import EvaluationBatches
from tests.corpora import write_corpus
from tests.runs import Project
from trainer.build import image_size, make_texts, open_split
from trainer.engine.distributed import World
from trainer.tasks import task_named
from trainer.tasks.parts import loss_sums, total_loss
from trainer.training.validate import Evaluation, evaluate, gather_predictions

QUESTIONS = 25
"""Of the validation split."""


class Threads:
    """Ranks as threads of this process: what `World` agrees on by collectives, they agree on at a barrier."""

    def __init__(self, world_size: int) -> None:
        self.world_size, self._barrier = world_size, threading.Barrier(world_size, timeout=60)
        self._given: list[torch.Tensor | None] = [None] * world_size

    def exchange(self, rank: int, value: torch.Tensor) -> list[torch.Tensor]:
        self._given[rank] = value
        self._barrier.wait()
        everything = list(self._given)
        self._barrier.wait()
        return everything


class ThreadWorld(World):
    """One of them."""

    def __init__(self, rank: int, threads: Threads) -> None:
        super().__init__(rank=rank, world_size=threads.world_size)
        object.__setattr__(self, "threads", threads)

    def sum_across_ranks(self, values: Sequence[float] | torch.Tensor) -> torch.Tensor:
        own = torch.as_tensor(values, dtype=torch.float64)
        return torch.stack(self.threads.exchange(self.rank, own)).sum(dim=0)

    def any_rank(self, flag: bool) -> bool:
        return any(bool(given) for given in self.threads.exchange(self.rank, torch.tensor(flag)))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def built(project: Project) -> BuiltModel:
    """Weights large enough that different questions get different answers."""
    built = project.model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.objective.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    built.objective.eval()
    return built


def evaluation(
    project: Project,
    built: BuiltModel,
    *,
    world_size: int = 1,
    micro_visits: int = 2,
    losses: LossConfig | None = None,
    stop: Callable[[int], bool] = lambda _: False,
    val: str | None = None,
    detailed: bool = False,
) -> list[Evaluation | None]:
    """What each rank gets from an evaluation of the validation split."""
    config = project.config(*([f"data.val={val}"] if val else []))
    split, threads = open_split(config, "val"), Threads(world_size)

    def of_rank(rank: int) -> Evaluation | None:
        share = Share(rank=rank, world_size=world_size, micro_visits=micro_visits)
        batches = EvaluationBatches(split, make_texts(config, built), image_size(config, built), share)
        return evaluate(
            built.objective,
            built,
            batches,
            Loader(batches, workers=0, pin_memory=False),
            ThreadWorld(rank, threads),
            task=task_named(config.task),
            losses=losses or config.losses,
            detailed=detailed,
            stop_requested=lambda: stop(rank),
        )

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(of_rank, range(world_size)))


@pytest.mark.parametrize("micro_visits", [1, 4])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_numbers_do_not_depend_on_ranks_or_micro_batches(
    project: Project, built: BuiltModel, world_size: int, micro_visits: int
):
    (alone,) = evaluation(project, built)
    ranks = evaluation(project, built, world_size=world_size, micro_visits=micro_visits)
    for rank in ranks:
        assert rank.counts == alone.counts
        for name, value in rank.metrics.items():
            assert value == pytest.approx(alone.metrics[name], rel=1e-5 if name.endswith("loss") else 0), name
    merged = {question: answer for rank in ranks for question, answer in rank.predictions.items()}
    assert merged == alone.predictions
    assert sum(len(rank.predictions) for rank in ranks) == QUESTIONS, "no question was asked of two ranks"


def test_each_question_has_one_answer_and_is_scored_once(project: Project, built: BuiltModel):
    (alone,) = evaluation(project, built)
    split = open_split(project.config(), "val")
    gold = {
        question.question_id: question.answer
        for image in range(split.index.num_images)
        for question in split.reader.sample(image).questions
    }
    assert alone.predictions.keys() == gold.keys()
    assert alone.counts["val/count"] == len(gold) == QUESTIONS
    assert len(set(alone.predictions.values())) > 1, "this model should not answer everything alike"
    hits = sum(alone.predictions[question] == answer for question, answer in gold.items())
    assert alone.metrics["val/accuracy"] == hits / QUESTIONS


def test_accuracies_by_steps_and_words_are_there_when_asked_for(project: Project, built: BuiltModel):
    (brief,), (detailed,) = evaluation(project, built), evaluation(project, built, detailed=True)
    added = detailed.counts.keys() - brief.counts.keys()
    assert {name.split("/")[1] for name in added} == {"steps", "length"}
    assert {name: detailed.metrics[name] for name in brief.metrics} == brief.metrics
    for kind in ("steps", "length"):
        assert sum(detailed.counts[name] for name in added if name.startswith(f"val/{kind}/")) == QUESTIONS


def test_questions_without_an_answer_are_answered_and_not_scored(project: Project, built: BuiltModel, tmp_path: Path):
    corpus = write_corpus(tmp_path / "corpus", num_images=3, formats=("png",))
    records = list(json.loads(corpus.questions.read_text()).values())
    rows = [
        {"image": f"{r['imageId']}.png", "question": r["question"], "answer": r["answer"] if number == 0 else None}
        for number, r in enumerate(records)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "shards"
    build_shards(format="jsonl", questions=[tmp_path / "rows.jsonl"], images=corpus.images, out=out)
    (result,) = evaluation(project, built, val=str(out))
    assert len(result.predictions) == len(records) > 1
    assert result.counts["val/count"] == 1


@pytest.mark.parametrize("asked", [0, 2])
def test_a_stop_that_one_rank_hears_ends_the_evaluation_of_all(project: Project, built: BuiltModel, asked: int):
    calls = [0, 0, 0]

    def stop(rank: int) -> bool:
        calls[rank] += 1
        return rank == asked and calls[rank] == 2

    assert evaluation(project, built, world_size=3, micro_visits=1, stop=stop) == [None] * 3
    assert calls == [2, 2, 2]


def test_the_loss_is_the_weighted_sum_of_its_parts(project: Project, built: BuiltModel):
    (result,) = evaluation(project, built, losses=LossConfig(itm=0.25, answer=2.0))
    metrics = result.metrics
    assert metrics["val/loss"] == pytest.approx(2.0 * metrics["val/answer_loss"] + 0.25 * metrics["val/itm_loss"])


def test_a_part_without_weight_is_no_number():
    sums = dict.fromkeys(sum_names(PARTS), 0.0) | {"answer_loss": 6.0, "answered": 4.0}
    metrics = loss_sums(sums).as_metrics("train")
    assert metrics == {"train/answer_loss": 1.5}
    assert total_loss(metrics, LossConfig(itm=3.0, answer=2.0), "train") == {"train/loss": 3.0}
    assert total_loss({}, LossConfig(), "train") == {}


def test_predictions_are_a_submission_in_the_order_of_question_ids():
    submission = gather_predictions({"b": "nö", "a": "yes"}, task_named("gqa"), World())
    rows = json.loads(submission.content)
    assert submission.ending == "json"
    assert rows == [{"questionId": "a", "prediction": "yes"}, {"questionId": "b", "prediction": "nö"}]
