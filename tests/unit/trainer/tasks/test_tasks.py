"""Every task is whole: what it reads, what it measures, and what its predictions look like."""

import json
from typing import get_args

import pytest

from model.config import LossConfig
from model.parts import PARTS, sum_names
from shards.format.records import Question, Types
from shards.tasks import TASKS
from shards.tasks.seam import Labels, TaskData, Tower
from trainer.scoring.metrics import Share
from trainer.tasks import Outputs, Task, task_named
from trainer.tasks.parts import loss_sums, part_metrics, part_scores

every_task = pytest.mark.parametrize(("name", "data"), TASKS.items())


@every_task
def test_a_task_has_a_file_of_what_it_measures(name: str, data: TaskData) -> None:
    task = task_named(name)
    assert isinstance(task, Task)
    assert data.formats
    assert task.scores() is not task.scores()
    assert all(score.as_metrics() == {} for score in task.scores())


@every_task
def test_what_a_part_reads_is_a_block_of_the_task(name: str, data: TaskData) -> None:
    assert data.reads
    assert set(data.reads) <= set(PARTS), name
    assert set(data.reads.values()) == set(data.blocks), "a block that no part reads is of no use"
    assert set(data.losses) <= set(data.reads)
    for block in data.blocks.values():
        assert block.tower in get_args(Tower)
        assert block.labels in get_args(Labels)
        assert block.rows_per_item >= 1
        assert data.images is None or block.rows_per_item <= data.images, "each row of an item reads another image"


@every_task
def test_the_metrics_of_a_task_begin_with_its_accuracy_and_its_headline_is_recorded(name: str, data: TaskData) -> None:
    task, all_parts = task_named(name), LossConfig(**dict.fromkeys(data.reads, 1.0))
    metrics = task.metrics(all_parts)
    assert metrics[0] == "accuracy"
    assert len(set(metrics)) == len(metrics)
    recorded = {f"val/{metric}" for metric in metrics} | set(part_metrics(data.reads))
    assert {f"val/{metric}" for _, metric in task.headline} <= recorded


def test_every_part_has_a_weight_and_sums_of_its_own() -> None:
    assert set(PARTS) <= set(LossConfig.model_fields)
    names = sum_names(PARTS)
    assert len(set(names)) == len(names)
    for part, sums in PARTS.items():
        assert len(sums.names) >= 2
        assert set(sums.seen) <= set(sums.names)
        assert not sums.seen or f"{part}_correct" in sums.names
    assert sum_names(list(PARTS)[::-1]) == names, "the order is that of PARTS"


def test_sums_of_parts_become_losses_and_accuracies() -> None:
    sums = dict.fromkeys(sum_names(PARTS), 0.0) | {"itm_loss": 6.0, "matched": 4.0, "itm_positives": 4.0}
    sums |= {"itm_negatives": 8.0, "itm_correct": 9.0, "stop_requests": 1.0}
    assert loss_sums(sums).as_metrics() == {"val/itm_loss": 1.5}
    assert part_scores(sums) == [Share("itm_accuracy", 9, 12)]
    only_answers = {name: sums[name] for name in PARTS["answer"].names}
    assert list(loss_sums(only_answers).sums) == ["answer"]
    assert part_scores(only_answers) == []


def test_scores_of_different_parts_do_not_add_up() -> None:
    with pytest.raises(AssertionError):
        Share("itm_accuracy", 1, 2) + Share("other", 1, 2)


class TestGqa:
    QUESTIONS = (
        Question(question_id="b", question="What is it?", answer="red", types=Types(structural="query")),
        Question(question_id="a", question="Is it?", answer="yes", types=Types(structural="verify")),
        Question(question_id="c", question="Who knows?"),
    )

    def test_answers_are_counted_where_the_right_one_is_known(self) -> None:
        task = task_named("gqa")
        scores = task.scores()
        said = task.observe(scores, self.QUESTIONS, Outputs(answers=["red", "no", "me"]), False)
        assert said == {"b": "red", "a": "no", "c": "me"}
        assert scores[0].as_counts() == {
            "val/count": 2,
            "val/open/count": 1,
            "val/binary/count": 1,
            "val/structural/query/count": 1,
            "val/structural/verify/count": 1,
        }
        assert scores[0].as_metrics()["val/accuracy"] == 0.5

    def test_the_row_of_an_empty_micro_batch_belongs_to_no_question(self) -> None:
        task = task_named("gqa")
        scores = task.scores()
        assert task.observe(scores, (), Outputs(answers=["red"]), True) == {}
        assert scores == task.scores()

    def test_a_model_that_has_learnt_no_answers_predicts_and_counts_nothing(self) -> None:
        task = task_named("gqa")
        scores = task.scores()
        assert task.observe(scores, self.QUESTIONS, Outputs(), False) == {}
        assert scores == task.scores()
        assert task.metrics(LossConfig(answer=0.0)) == ()

    def test_a_submission_is_in_the_order_of_question_ids(self) -> None:
        made = task_named("gqa").dump({"b": "nö", "a": "yes"})
        ending, content = made.ending, made.content
        assert ending == "json"
        assert json.loads(content) == [
            {"questionId": "a", "prediction": "yes"},
            {"questionId": "b", "prediction": "nö"},
        ]
        assert "nö".encode() in content
        assert content.endswith(b"\n")
