"""What a recipe says of its task and gets wrong is one line and exit code 2, before anything is written."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.regions import shared_lxmert
from tests.task_corpora import CORPORA, task_recipe
from trainer import cli
from trainer.config import load_config

Say = Callable[..., str]
"""(task, overrides) -> the one line that `duoflow train` ends with."""


@pytest.fixture(scope="module")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, str]]:
    def build(task: str) -> dict[str, str]:
        directory = tmp_path_factory.mktemp(task)
        out = str(CORPORA[task](directory / "files", num_samples=4, seed=0).build(directory / "shards"))
        return {"train": out, "val": out}

    return cache(build)


@pytest.fixture
def refused(
    data_of: Callable[[str], dict[str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Say:
    monkeypatch.setattr("trainer.commands.start._launch", lambda *_: pytest.fail("ranks were started"))

    def run(task: str, *overrides: str, data: str | None = None) -> str:
        before = {tmp_path / "own.yaml", *tmp_path.iterdir()}
        recipe = task_recipe(tmp_path / "own.yaml", task, data_of(data or task))
        capsys.readouterr()  # a recipe over regions comes with a checkpoint, whose making imports much
        assert cli.main(["train", str(recipe), *overrides]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert set(tmp_path.iterdir()) == before, "nothing is written"
        (line,) = output.err.splitlines()
        return line

    return run


@pytest.mark.parametrize("task", CORPORA)
def test_every_other_tasks_shards_are_refused_with_the_task_that_reads_them(refused: Say, task: str):
    for other in CORPORA.keys() - {task}:
        line = refused(task, data=other)
        assert "data.train: /" in line
        assert f"was built from format {other}, and task {task} reads {task}" in line
        assert line.endswith(f"; set task: {other}, or name other shards")


def test_a_validation_split_of_another_task_is_refused_too(refused: Say, data_of):
    line = refused("vqa", f"data.val={data_of('gqa')['val']}")
    assert "data.val: " in line
    assert "was built from format gqa, and task vqa reads vqa" in line


@pytest.mark.parametrize(("task", "hint"), [("nlvr", "nlvr2"), ("snli-ve", "snli_ve"), ("vqav2", "vqa"), ("zzz", None)])
def test_an_unknown_task_is_named_with_the_nearest_one(refused: Say, task: str, hint: str | None):
    line = refused("vqa", f"task={task}")
    known = "gqa, vqa, snli_ve, nlvr2, lxmert, mpdocvqa, mpdocvqa_retrieval"
    assert line.endswith(f"task: expected one of {known}{f' (did you mean {hint}?)' if hint else ''}, got {task}")


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("snli_ve", ["losses.itm=1"], "losses.itm: task snli_ve has no such loss; set it to 0 (it has: classify)"),
        ("nlvr2", ["losses.answer=1"], "losses.answer: task nlvr2 has no such loss; set it to 0 (it has: classify)"),
        ("gqa", ["losses.classify=1"], "losses.classify: task gqa has no such loss; set it to 0 (it has: itm, answer)"),
        ("nlvr2", ["losses.classify=0"], "losses: classify is 0, so nothing would be trained"),
        ("vqa", ["losses.answer=0"], "losses: answer and classify are both 0, so nothing would be trained"),
        (
            "vqa",
            ["answers.by=classify"],
            "answers.by: classify needs what losses.classify trains, and that is 0; give it a weight",
        ),
        (
            "vqa",
            ["answers.by=rank", "losses.answer=0", "losses.classify=1"],
            "answers.by: rank needs what losses.answer trains, and that is 0; give it a weight",
        ),
        ("gqa", ["answers.by=rank"], "answers.by: rank has no effect on task gqa; remove it"),
        ("nlvr2", ["answers.by=classify"], "answers.by: classify has no effect on task nlvr2; remove it"),
        (
            "vqa",
            ["early_stopping.metric=val/consistency"],
            "early_stopping.metric: val/consistency is not recorded; ",
        ),
        (
            "nlvr2",
            ["early_stopping.metric=val/binary"],
            "recorded: train/loss, val/loss, train/classify_loss, val/classify_loss, val/accuracy, val/consistency",
        ),
        (
            "snli_ve",
            ["early_stopping.metric=val/itm_accuracy"],
            "early_stopping.metric: val/itm_accuracy is not recorded; ",
        ),
        ("nlvr2", ["early_stopping.metric=val/consistencie"], "did you mean val/consistency?"),
        ("vqa", ["model.second_stream=efficient_sam_masks"], "which task vqa lacks"),
        (
            "snli_ve",
            ["model.lora.answer.rank=2", "model.lora.answer.targets=[query]", "model.freeze=[answer]"],
            "model.lora.answer: answer is not used",
        ),
    ],
)
def test_what_contradicts_the_task_is_named_by_its_key(refused: Say, task: str, overrides: list[str], message: str):
    assert message in refused(task, *overrides)


@pytest.mark.parametrize("part", ["losses.classify=1", "answers.by=rank"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory; name a JSON list of answers"),
        ('{"yes": 3}', "expected a JSON list of answers"),
        ('["yes", 3]', "expected a JSON list of answers"),
        ("yes\nno\n", "expected a JSON list of answers"),
        ("[]", "no answer in it; expected a JSON list of answers"),
    ],
)
def test_a_list_of_answers_has_to_be_one(refused: Say, tmp_path: Path, part: str, content: str | None, message: str):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_text(content)
    line = refused("vqa", part, f"answers.list={path}")
    assert f"answers.list: {path}: " in line
    assert line.endswith(message)


def test_a_training_split_without_a_frequent_answer_makes_no_list(refused: Say):
    line = refused("vqa", "losses.classify=1", "answers.min_count=99")
    assert "answers.min_count: no answer of " in line
    assert line.endswith("is that of 99 questions; lower it, or name a file in answers.list")


def test_a_metric_that_the_validation_split_has_not_is_found_before_training(refused: Say, data_of):
    index = json.loads((Path(data_of("vqa")["val"]) / "index.json").read_text())
    assert "number" not in index["types"]["answer_type"], "four samples have no question of how many"
    line = refused("vqa", "early_stopping.metric=val/number")
    assert "early_stopping.metric: val/number: " in line
    assert line.endswith("has no such question; it has val/accuracy, val/other, val/yes_no")


@pytest.mark.parametrize("task", CORPORA)
def test_the_losses_that_a_recipe_leaves_out_are_those_of_its_task(data_of, task: str, tmp_path: Path):
    recipe = task_recipe(tmp_path / "own.yaml", task, data_of(task))
    losses = load_config(recipe).losses
    expected = {
        "gqa": (1.0, 1.0, 0.0),
        "vqa": (0.0, 1.0, 0.0),
        "snli_ve": (0.0, 0.0, 1.0),
        "nlvr2": (0.0, 0.0, 1.0),
        "lxmert": (0.0, 0.0, 1.0),
        "mpdocvqa": (0.0, 1.0, 0.0),
    }
    assert (losses.itm, losses.answer, losses.classify) == expected[task]
    beside = load_config(recipe, ["losses.genome=0.1"]).losses
    assert (beside.itm, beside.answer, beside.classify) == expected[task]


@pytest.mark.parametrize("task", CORPORA)
def test_a_recipe_of_each_task_passes_every_check_of_a_start(data_of, task: str, tmp_path: Path, capsys):
    recipe = task_recipe(tmp_path / "own.yaml", task, data_of(task))
    assert cli.main(["train", str(recipe), "--dry-run"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert ("heads" in rows["parameters trained"]) == (task in ("snli_ve", "nlvr2", "lxmert", "mpdocvqa"))


def test_a_tower_that_reads_something_else_than_the_shards_hold_is_one_line(refused: Say):
    line = refused("lxmert", "model.vision=scratch", "model.match=scratch")
    assert "model.vision: scratch reads pixels, and /" in line
    assert line.endswith("holds regions; name shards built with --images, or a tower such as LXMERT's")
    line = refused("nlvr2", f"model.vision={shared_lxmert()}", f"model.match={shared_lxmert()}")
    assert "reads regions, and /" in line
    assert line.endswith("holds pixels; name shards built with --regions, or a tower such as BLIP's")


def test_documents_are_read_by_a_vision_language_model_or_a_reader(refused: Say):
    line = refused("mpdocvqa", "model.vlm=null")
    assert line.endswith(
        "model.vlm: is null, and task mpdocvqa shows documents of any number of pages; name a vision-language model, "
        "or set model.reader"
    )


def test_regions_are_no_pictures_to_be_changed(refused: Say):
    line = refused("lxmert", "data.augment=rand-m9")
    assert "data.augment: rand-m9 changes pictures, and /" in line
    assert line.endswith("holds regions; set it to null")


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("nlvr2", ("answers.start_from=x/y",), "answers.start_from: gives weights to a head over answers, and this"),
        ("lxmert", ("answers.start_list=x",), "answers.start_list: has no effect without answers.start_from"),
        ("lxmert", ("answers.start_from=x/y", "model.head=albef"), "answers.start_from: is a head of LXMERT's form"),
        ("lxmert", ("answers.start_from=x/y", "answers.start_list=gone"), "answers.start_list: gone: cannot be read"),
    ],
)
def test_heads_to_start_from_that_have_no_place_are_one_line(refused: Say, task: str, overrides, message: str):
    assert message in refused(task, *overrides)
