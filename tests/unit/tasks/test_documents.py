"""Documents through a vision-language model: what a question is asked of is what is read for it, however the visits are
grouped and shared between ranks."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from shards.read.micro_batches import Split
from tests.task_corpora import task_recipe, write_task
from tests.unit.tasks.document_trials import Reader, same


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("documents")
    return task_recipe(directory / "own.yaml", "mpdocvqa", write_task(directory, "mpdocvqa"))


@pytest.fixture(scope="module")
def shared(recipe: Path) -> Reader:
    return Reader(recipe, "data.pages_per_visit=2")


def test_questions_behind_shared_pages_learn_what_each_would_alone(recipe: Path, shared: Reader):
    rows = Reader(recipe, "data.pages_per_visit=2", "vlm.questions=rows")
    for number in range(2):
        same(shared.loss_and_gradients(shared.step(number)), rows.loss_and_gradients(rows.step(number)))


def test_every_number_of_ranks_and_micro_batches_gives_the_same_step(shared: Reader):
    for number in (0, shared.train.steps_per_epoch - 1):
        whole = shared.loss_and_gradients(shared.step(number))
        for world_size, micro_visits in ((1, 1), (2, 2), (4, 1)):
            same(
                whole, shared.loss_and_gradients(shared.step(number, world_size=world_size, micro_visits=micro_visits))
            )


def test_every_number_of_ranks_measures_the_same_and_answers_every_question_once(shared: Reader):
    (alone,) = shared.evaluation()
    asked = {item.item_id for number in range(shared.val.index.num_images) for item in _items(shared.val, number)}
    assert set(alone.predictions) == asked
    assert {"val/accuracy", "val/anls", "val/page_accuracy", "val/hit@3", "val/page_loss"} <= set(alone.metrics)
    for world_size, micro_visits in ((1, 1), (2, 1)):
        ranks = shared.evaluation(world_size=world_size, micro_visits=micro_visits)
        assert {name: said for rank in ranks for name, said in rank.predictions.items()} == alone.predictions
        assert ranks[0].metrics == {
            name: pytest.approx(value, rel=1e-5) if name.endswith("loss") else value
            for name, value in alone.metrics.items()
        }


def test_a_narrower_window_is_another_step_and_the_same_evaluation(recipe: Path, shared: Reader):
    whole = Reader(recipe)
    narrow, wide = (one.loss_and_gradients(one.step(0))[0] for one in (shared, whole))
    assert narrow != pytest.approx(wide, rel=1e-4)
    assert whole.evaluation() == shared.evaluation()


def _items(split: Split, number: int) -> Sequence:
    return split.reader.sample(number).items
