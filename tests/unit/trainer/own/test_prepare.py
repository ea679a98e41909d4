"""From rows and images to a recipe that loads: what is left out is named, and a second try overwrites nothing."""

import json
from pathlib import Path

import pytest
from PIL import Image

from shards.errors import DataError, UserError
from shards.format.index import read_index
from trainer import cli
from trainer.config import load_config
from trainer.own.choices import choose, doubts, explain
from trainer.own.facts import Facts
from trainer.own.prepare import Request, prepare
from trainer.own.recipe import recipe_text

FACTS = Facts(
    train_images=1_350,
    val_images=150,
    train_questions=12_855,
    val_questions=1_445,
    most_per_image=19,
    train_visits=1_364,
    answers=13,
    commonest="yes",
    commonest_share=0.37,
    words=28,
    characters=22,
    longest_question=10,
    longest_answer=1,
    short_side=1_200,
    same_questions=False,
    unseen=0.0,
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = ["image,question,answer"]
    for number in range(12):
        Image.new("RGB", (64, 48), (20 * number, 0, 0)).save(photos / f"{number}.png")
        rows += [f"{number}.png,What is it?,Thing {number % 3}", f"{number},Is it red?,Yes"]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def request(**values) -> Request:
    return Request(
        **{"name": Path("mine"), "images": Path("photos"), "questions": Path("rows.csv"), "columns": {}} | values
    )


def silently(asked: Request):
    return prepare(asked, lambda line: None)  # noqa: ARG005


@pytest.mark.usefixtures("desk")
def test_the_recipe_loads_and_names_the_shards_that_were_built():
    prepared = silently(request())
    config = load_config("mine.yaml")
    assert config.run.name == "mine"
    train, val = (read_index(place) for place in (config.data.train, config.data.val))
    assert (train.counts["questions"], val.counts["questions"]) == (20, 4)
    assert set(train.answers) <= {"yes", "thing 0", "thing 1", "thing 2"}, "in the form in which they are compared"
    assert prepared.left_out == []


def test_what_cannot_be_used_is_left_out_and_named(desk: Path):
    (desk / "photos" / "3.png").write_bytes(b"no image")
    whole = (desk / "photos" / "4.png").read_bytes()
    (desk / "photos" / "4.png").write_bytes(whole[:50])
    with (desk / "rows.csv").open("a") as file:
        file.write("99.png,Is it there?,no\n5.png,What else?,\n")
    said = " | ".join(silently(request()).left_out)
    assert "rows without question or answer: 1 (line 27 has no answer)" in said
    assert "images not in photos: 1 (99.png in 1 row)" in said
    assert "images that cannot be used: 1 (3.png is no image" in said
    assert "4.png (unreadable)" in said


def test_a_wrong_directory_is_said_before_anything_is_built(desk: Path):
    (desk / "others").mkdir()
    Image.new("RGB", (8, 8)).save(desk / "others" / "0.png")
    with pytest.raises(DataError, match=r"22 of 24 rows name images that are not in others, such as '1\.png'"):
        silently(request(images=Path("others")))
    assert not (desk / "mine").exists()


def test_a_recipe_is_never_overwritten_and_shards_of_other_rows_are_not_mixed(desk: Path):
    silently(request())
    with pytest.raises(UserError, match=r"^mine\.yaml: is there already; train it with `duoflow train mine\.yaml`"):
        silently(request())
    (desk / "mine.yaml").unlink()
    silently(request())
    (desk / "mine.yaml").unlink()
    with pytest.raises(UserError, match=r"^mine: holds the shards of other rows; remove this directory"):
        silently(request(seed=2, val_share=0.4))


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("name", ["-x", ".x", "a b", "a/é,"])
def test_a_name_that_no_run_can_have_is_refused(name: str):
    with pytest.raises(UserError, match="expected letters, digits and"):
        silently(request(name=Path(name)))


@pytest.mark.usefixtures("desk")
def test_json_says_all_of_it_on_stdout_and_the_rest_on_stderr(capsys):
    assert cli.main(["init", "mine", "--images", "photos", "--questions", "rows.csv", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recipe"] == "mine.yaml"
    assert document["facts"]["train_images"] == 10
    assert {choice["key"] for choice in document["choices"]} >= {"limits.epochs", "model.scratch.vocab_size"}


@pytest.mark.parametrize("words", [["--columns", "picture=x"], ["--columns", "image"], ["--val-share", "1"]])
def test_options_that_say_nothing_are_one_line(words: list[str], capsys):
    assert cli.main(["init", "mine", "--images", "photos", "--questions", "rows.csv", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class TestChoices:
    @pytest.mark.parametrize(
        ("images", "questions"), [(1, 1), (2, 3), (9, 40), (150, 600), (5_000, 60_000), (10**6, 10**7)]
    )
    def test_sizes_of_every_kind_give_a_recipe_that_loads(self, tmp_path: Path, images: int, questions: int):
        visits = max(images, -(-questions // 16))
        facts = FACTS._replace(train_images=images, train_questions=questions, train_visits=visits)
        chosen = choose(facts)
        path = tmp_path / "mine.yaml"
        path.write_text(_text(facts))
        config = load_config(path)
        assert config.batch.visits <= visits
        assert config.optim.warmup_steps < chosen.steps
        assert chosen.steps == config.limits.epochs * -(-visits // config.batch.visits)

    def test_photos_are_seen_in_more_pixels_than_icons_at_the_same_cost(self):
        photo, icon = choose(FACTS), choose(FACTS._replace(short_side=64))
        assert photo.image_size > icon.image_size
        assert photo.image_size // photo.patch_size == icon.image_size // icon.patch_size

    def test_the_last_lines_of_a_recipe_are_one_with_the_weights_of_blip(self, tmp_path: Path):
        text = _text(FACTS)
        head, _, tail = text.partition("# With BLIP's weights")
        lines = [line.removeprefix("# ") for line in tail.splitlines()[2:]]
        sections, drop = [], False
        for line in head.splitlines():
            if line[:1].isalpha():
                drop = line.split(":")[0] in ("model", "losses", "batch", "optim")
            if not drop:
                sections.append(line)
        path = tmp_path / "blip.yaml"
        path.write_text("\n".join([*sections, *lines]) + "\n")
        config = load_config(path)
        assert config.model.vision == "Salesforce/blip-vqa-base"
        assert set(config.model.freeze) >= {"vision", "match", "answer"}

    def test_every_choice_has_its_reason_in_the_recipe(self):
        text = _text(FACTS)
        for choice in explain(FACTS, choose(FACTS)):
            assert choice.why in text

    def test_little_data_is_said_to_be_little(self):
        assert doubts(FACTS) == []
        few = FACTS._replace(train_images=8, val_questions=4, unseen=0.25, answers=1)
        assert [line.split()[0] for line in doubts(few)] == ["8", "only", "25.0", "every"]

    def test_questions_that_are_the_same_for_every_image_leave_matching_nothing_to_learn(self, desk: Path):
        (line,) = doubts(FACTS._replace(same_questions=True))
        assert line.startswith("every image is asked the same questions: matching has no wrong one")
        facts = silently(request()).facts
        assert facts.same_questions
        with (desk / "rows.csv").open("a") as file:
            file.write("".join(f"{image}.png,What else is in number {image}?,nothing\n" for image in range(12)))
        assert not silently(request(name=Path("other"))).facts.same_questions


def _text(facts: Facts) -> str:
    chosen = choose(facts)
    places = {"recipe": "mine.yaml", "rows": "rows.csv", "train": "mine/shards/train", "val": "mine/shards/val"}
    return recipe_text(facts, chosen, explain(facts, chosen), **places)
