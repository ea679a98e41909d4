"""What the library gives is what the model of the run gives, in the shapes that are promised."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import duoflow
from tests.runs import Project, answer_photo, evaluate_run
from tests.unit.trainer.inference.test_answer import finished_run

QUESTION = "Is there a red square?"


@pytest.fixture(scope="module")
def model(run: Path) -> duoflow.Model:
    return duoflow.load(run)


def test_an_answer_is_that_of_the_command(model: duoflow.Model, run: Path, photos: list[Path]):
    answer, expected = model.answer(photos[0], QUESTION), answer_photo(run, photos[0], QUESTION)
    assert (answer.text, answer.probability) == expected[:2]
    assert answer.question == QUESTION


def test_where_it_looked_is_in_the_photo(model: duoflow.Model, photos: list[Path]):
    answer = model.answer(photos[1], QUESTION)
    assert answer.heatmap.ndim == 2
    assert (answer.heatmap >= 0).all()
    assert answer.heatmap.dtype == np.float32
    assert answer.points.shape == (len(answer.points), 2)
    width, height = Image.open(photos[1]).size
    assert ((answer.points >= 0) & (answer.points <= (width, height))).all()
    assert (answer.mask is None) == (len(answer.points) == 0)
    if answer.mask is not None:
        assert (answer.mask.shape, answer.mask.dtype) == ((height, width), bool)
    looked = model.look(photos[1], QUESTION, answer.text)
    assert np.array_equal(looked.heatmap, answer.heatmap)


def test_an_overlay_is_that_of_the_command(model: duoflow.Model, run: Path, photos: list[Path], tmp_path: Path):
    answer_photo(run, photos[0], QUESTION, overlay=tmp_path / "command.png")
    drawn = model.overlay(model.answer(photos[0], QUESTION))
    assert np.array_equal(np.asarray(drawn), np.asarray(Image.open(tmp_path / "command.png")))


def test_alternatives_are_other_answers_the_likeliest_first(model: duoflow.Model, photos: list[Path]):
    answer = model.answer(photos[0], QUESTION)
    found = answer.alternatives
    assert len(found) == 5
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    assert all(0 < one.probability <= 1 for one in found)
    assert sum(one.probability for one in found) + answer.probability <= 1 + 1e-5
    assert answer.text not in {one.text for one in found}
    assert answer.alternatives is found


def test_many_answers_come_in_order_and_are_those_of_each_alone(model: duoflow.Model, photos: list[Path]):
    asked = [(photo, question) for photo in photos for question in (QUESTION, "What color is it?")]
    asked.append((photos[0], "How many circles are there?"))
    alone = [model.answer(*one) for one in asked]
    for size in (1, 4, 32):
        found = list(model.answer_many(iter(asked), batch_size=size))
        assert [answer.question for answer in found] == [question for _, question in asked]
        assert [answer.text for answer in found] == [answer.text for answer in alone]
        assert [answer.probability for answer in found] == pytest.approx(
            [answer.probability for answer in alone], rel=1e-4
        )


def test_answers_come_before_the_last_question_is_asked(model: duoflow.Model, photos: list[Path]):
    taken = []

    def asked():
        for number in range(6):
            taken.append(number)
            yield photos[0], QUESTION

    next(model.answer_many(asked(), batch_size=2))
    assert taken == [0, 1]


def test_fused_tokens_are_those_of_each_image(model: duoflow.Model, photos: list[Path]):
    together = model.fuse(photos)
    assert together.shape[0] == 3
    assert not together.requires_grad
    for number, photo in enumerate(photos):
        torch.testing.assert_close(model.fuse([photo])[0], together[number])
    assert not torch.allclose(together[0], together[1])


def test_an_image_of_pillows_is_the_photo_that_it_was_read_from(model: duoflow.Model, photos: list[Path]):
    opened = Image.open(photos[0])
    assert torch.equal(model.fuse([opened]), model.fuse([photos[0]]))


def test_device_and_precision_are_chosen_or_given(run: Path, photos: list[Path]):
    assert duoflow.load(run).dtype == torch.float32
    given = duoflow.load(run, device="cpu", precision="bf16")
    assert (given.device.type, given.dtype) == ("cpu", torch.bfloat16)
    assert given.fuse(photos[:1]).dtype == torch.bfloat16
    with pytest.raises(duoflow.ConfigError, match="precision=fp8"):
        duoflow.load(run, precision="fp8")


def test_overrides_are_those_that_a_run_leaves_open(run: Path, photos: list[Path]):
    one_point = duoflow.load(run, overrides={"model.guidance.num_points": 1})
    assert len(one_point.answer(photos[0], QUESTION).points) <= 1
    with pytest.raises(duoflow.ConfigError, match=r"run\.seed=1: is settled by the run"):
        duoflow.load(run, overrides={"run.seed": 1})


@pytest.mark.parametrize(
    ("photo", "question", "said"),
    [("nowhere.png", QUESTION, "nowhere.png"), (None, "  ", "question: empty")],
)
def test_what_cannot_be_used_is_one_line(
    model: duoflow.Model, photos: list[Path], photo: str | None, question: str, said: str
):
    with pytest.raises(duoflow.UserError, match=said) as told:
        model.answer(photo or photos[0], question)
    assert "\n" not in str(told.value)


def test_two_photos_are_too_many_here(model: duoflow.Model, photos: list[Path]):
    with pytest.raises(duoflow.ConfigError, match=r"2 photos, and the model of .* reads one at a time"):
        model.answer(photos[:2], QUESTION)


def test_without_a_matching_tower_nothing_can_be_looked_at(project: Project, photos: list[Path], tmp_path: Path):
    model = duoflow.load(finished_run(project, tmp_path / "runs" / "blind", "losses.itm=0"))
    answer = model.answer(photos[0], QUESTION)
    with pytest.raises(duoflow.ConfigError, match=r"^losses\.itm: is 0 in this run"):
        _ = answer.heatmap


def test_scores_are_those_of_the_command(run: Path):
    scores = duoflow.evaluate(run, "val")
    assert (scores.metrics, scores.counts) == evaluate_run(run, "val")
    assert scores.predictions == run / "predictions" / "val.json"
    assert duoflow.evaluate(run, "val", images="shuffled").predictions is None


def test_every_public_name_is_there_and_others_are_named():
    assert all(getattr(duoflow, name) is not None for name in duoflow.__all__)
    assert set(duoflow.__all__) <= set(dir(duoflow))
    with pytest.raises(AttributeError, match="module 'duoflow' has no attribute 'lode'; it has "):
        _ = duoflow.lode


def test_importing_it_imports_nothing_heavy():
    heavy = "torch", "transformers", "deepspeed", "model", "trainer", "shards", "numpy", "PIL", "pydantic"
    script = f"import sys, duoflow; print([name for name in {heavy} if name in sys.modules])"
    repository = Path(duoflow.__file__).parents[1]
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=repository, check=True)
    assert told.stdout.strip() == "[]"
