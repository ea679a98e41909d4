"""Hi-VT5 over documents: the same step for every number of ranks, whatever is trained, and what is exported."""

from pathlib import Path

import pytest
import torch

from shards.errors import ConfigError, DataError
from tests.reader import reader_recipe, write_documents
from tests.unit.tasks.document_trials import Reader, same
from trainer.config import load_config
from trainer.training.preflight import check_inputs

LORA = ("model.freeze=[answer]", "model.lora.answer.rank=2", "model.lora.answer.targets=[q,v]")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("documents")
    return reader_recipe(directory / "own.yaml", write_documents(directory))


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Reader:
    return Reader(recipe, "data.pages_per_visit=2")


def test_every_number_of_ranks_and_micro_batches_gives_the_same_step(whole: Reader):
    for number in (0, whole.train.steps_per_epoch - 1):
        together = whole.loss_and_gradients(whole.step(number))
        for world_size, micro_visits in ((1, 1), (2, 2), (4, 1)):
            split = whole.step(number, world_size=world_size, micro_visits=micro_visits)
            same(together, whole.loss_and_gradients(split))


@pytest.mark.parametrize("overrides", [(), LORA, ("model.freeze=[answer]",), ("losses.page=0", "reader.boxes=false")])
def test_every_trained_parameter_has_a_gradient_after_one_step(recipe: Path, overrides: tuple[str, ...]):
    reader = Reader(recipe, *overrides)
    loss, gradients = reader.loss_and_gradients(reader.step(0, micro_visits=2))
    assert loss > 0
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []
    assert any(name.startswith("answer.") for name in gradients) == (overrides not in (LORA, LORA[:1]))
    assert ("page_tokens.weight" in gradients) == (overrides in (LORA, LORA[:1]))


def test_every_number_of_ranks_measures_the_same_and_names_pages_of_the_window(whole: Reader):
    (alone,) = whole.evaluation()
    samples = [whole.val.reader.sample(number) for number in range(whole.val.index.num_images)]
    questions = {item.item_id: item for sample in samples for item in sample.items}
    assert alone.predictions.keys() == questions.keys()
    for name, said in alone.predictions.items():
        assert sorted(said["pred_answer_pages"]) == list(range(len(questions[name].pages)))
    assert {"val/accuracy", "val/anls", "val/page_accuracy", "val/hit@3", "val/long_hit@1"} <= alone.metrics.keys()
    ranks = whole.evaluation(world_size=2, micro_visits=1)
    assert {name: said for rank in ranks for name, said in rank.predictions.items()} == alone.predictions
    assert ranks[0].metrics == {
        name: pytest.approx(value, rel=1e-5) if name.endswith("loss") else value
        for name, value in alone.metrics.items()
    }


def test_the_loss_is_that_of_the_answers_and_a_quarter_of_that_of_the_pages(whole: Reader):
    (item,) = whole.step(0)
    with torch.no_grad():
        output = whole.objective(item.batch)
    sums = dict(zip(whole.objective.sum_names, output.sums.tolist(), strict=True))
    expected = (sums["answer_loss"] + 0.25 * sums["page_loss"]) * float(item.batch.loss_scale)
    assert float(output.loss) == pytest.approx(expected, rel=1e-6)
    assert sums["paged"] == sums["answered"] == float(item.batch.page_weight.sum())


def test_a_window_longer_than_the_page_head_is_refused_where_it_is_met(recipe: Path):
    with pytest.raises(DataError, match=r"\.tar.*page 12 of its window, .*places for 11; raise reader.max_pages"):
        Reader(recipe, "reader.max_pages=11").evaluation()


def test_shards_without_words_are_refused_before_a_model_is_loaded(tmp_path: Path):
    data = write_documents(tmp_path, with_words=False)
    config = load_config(reader_recipe(tmp_path / "own.yaml", data, model={"answer": "no/such-model"}))
    with pytest.raises(ConfigError) as error:
        check_inputs(config, device_type="cpu", past=None)
    assert str(error.value).startswith(f"data.train: {data['train']}: its pages have no words")
    assert "\n" not in str(error.value)
