"""Hi-VT5 over documents: the same step for every number of ranks, whatever is trained, and what is exported."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

from shards.errors import ConfigError, DataError, UserError
from tests.reader import reader_recipe, write_documents
from tests.runs import evaluate_run, weights
from tests.unit.tasks.document_trials import Reader, same
from trainer.cli import main
from trainer.config import load_config
from trainer.export.manifest import seal
from trainer.export.reader import READER
from trainer.export.t5 import T5
from trainer.export.write import export_model
from trainer.run_directory import RunDirectory
from trainer.training.preflight import check_inputs

LORA = ("model.freeze=[answer]", "model.lora.answer.rank=2", "model.lora.answer.targets=[q,v]")


def exported(reader: Reader, directory: Path) -> Path:
    """A run directory with the weights of a reader, as if it had trained them."""
    place = reader.config.run.model_copy(update={"directory": str(directory), "name": "run"})
    config = reader.config.model_copy(update={"run": place})
    run = RunDirectory.of(config)
    run.create()
    run.write_config(config)
    export_model(config, reader.built, weights(reader.objective), run.export, step=3, metrics={"val/anls": 0.5})
    return run.path


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


@pytest.mark.parametrize("overrides", [(), LORA, LORA[:1]], ids=["whole", "lora", "frozen"])
def test_an_export_measures_what_the_trained_model_does(recipe: Path, tmp_path: Path, overrides: tuple[str, ...]):
    reader = Reader(recipe, *overrides)
    (expected,) = reader.evaluation()
    run = exported(reader, tmp_path)
    metrics, counts = evaluate_run(run, "val")
    assert metrics.items() >= expected.metrics.items()
    assert counts.items() >= expected.counts.items()
    other, _ = evaluate_run(run, "val", images="shuffled")
    assert other["val/answer_loss"] != metrics["val/answer_loss"], "the words of another document"


def test_a_whole_t5_is_exported_with_its_page_tokens(whole: Reader, tmp_path: Path):
    directory = exported(whole, tmp_path) / "export" / T5
    model, tokenizer = T5ForConditionalGeneration.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.convert_tokens_to_ids([f"[PAGE_{number}]" for number in range(3)])
    assert tuple(ids) == whole.built.collation.page_ids
    trained = whole.objective.tower.model.shared.weight.detach()
    torch.testing.assert_close(model.shared.weight.detach()[ids], trained[ids])


def test_what_is_beside_t5_is_missed_and_not_taken_from_another_recipe(whole: Reader, tmp_path: Path):
    run = exported(whole, tmp_path)
    file = run / "export" / READER
    state = load_file(file)
    save_file({name: value[:1].contiguous() for name, value in state.items()}, file)
    with pytest.raises(UserError, match=f"{READER}: is not the file that was exported"):
        evaluate_run(run, "val")
    seal(run / "export", {})  # as if it had been written so
    with pytest.raises(UserError, match=f"{READER}: is not that of this recipe"):
        evaluate_run(run, "val")
    file.unlink()
    with pytest.raises(UserError, match=f"{READER}: is missing"):
        evaluate_run(run, "val")


def test_a_document_of_shards_is_asked_about(whole: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, shards = str(exported(whole, tmp_path)), whole.config.data.val
    asked = ["answer", run, "--shards", shards, "--question", "Which number?"]
    assert main([*asked, "--document", "ffbf0001"]) == 0
    assert " %)  on ffbf0001_p" in capsys.readouterr().out
    refused = {
        (*asked, "--document", "ffbf"): "--document: ffbf: ",
        tuple(asked): "--document: is not given",
        (*asked, "--document", "ffbf0001", "--image", "p1.png"): "--image: has no effect",
    }
    for words, line in refused.items():
        assert main(list(words)) == 2
        said = capsys.readouterr().err.strip()
        assert line in said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["task=gqa"], "model.reader: hi_vt5 reads the words of pages, and task gqa has none"),
        (["model.vlm=some/vlm"], "model.vlm: is a whole model"),
        (["model.answer=scratch"], "model.answer: scratch: hi_vt5 starts from a checkpoint"),
        (["losses.answer=0"], "losses.answer: is 0"),
        (["data.pages_per_visit=13"], "data.pages_per_visit: 13, and the page head has places for 12"),
        (["reader.max_page_tokens=27"], "reader.max_page_tokens: 27 leaves no room for words"),
        (["data.image_size=64"], "data.image_size: has no effect with model.reader"),
        (["pnp.reader=some/t5"], "pnp: needs a trained fusion"),
        (["optim.layer_decay=0.9"], "optim.layer_decay: 0.9 has no effect"),
        (["model.lora.answer.rank=2", "model.lora.answer.targets=[q]"], "model.lora.answer: answer is trained whole"),
    ],
)
def test_what_cannot_stand_beside_it_is_refused_in_a_line(recipe: Path, overrides: list[str], line: str):
    with pytest.raises(ConfigError) as error:
        load_config(recipe, ["early_stopping.metric=val/loss", "early_stopping.mode=min", *overrides])
    assert line in str(error.value)
