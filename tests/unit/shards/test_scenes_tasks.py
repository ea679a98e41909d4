"""Rendered sets of VQA v2, NLVR2 and SNLI-VE: official files, true labels, and nothing that a text alone tells."""

import io
import json
import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from shards.errors import UserError
from shards.scenes import scene_files, task_files, write_scenes
from shards.scenes.command import TASKS
from shards.scenes.nlvr2 import pair_set
from shards.scenes.snli_ve import CURTAIN, draw, triple
from shards.scenes.world import CELL_SIZE, COLORS, SHAPES

SEED = 3
NUM_IMAGES = {"vqa": 200, "nlvr2": 1600, "snli_ve": 600}


@pytest.fixture(scope="module")
def files():
    return {task: dict(task_files(task, num_images=number, seed=SEED)) for task, number in NUM_IMAGES.items()}


def lines(data):
    return [json.loads(line) for line in data.splitlines()]


def best_by(rows, key, label):
    """The share that is right of whoever knows nothing but the key, and for it the most frequent label."""
    labels = defaultdict(Counter)
    for row in rows:
        labels[key(row)][label(row)] += 1
    return sum(max(counts.values()) for counts in labels.values()) / len(rows)


# Every task


@pytest.mark.parametrize("task", NUM_IMAGES)
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(task):
    few = TASKS[task].min_images
    first, again, other = (dict(task_files(task, num_images=few, seed=seed)) for seed in (5, 5, 6))
    assert first == again
    assert all(first[path] != other[path] for path in first if path.startswith("images/"))


@pytest.mark.parametrize("task", NUM_IMAGES)
def test_the_fewest_images_leave_no_split_empty(task):
    counts = TASKS[task].image_counts(TASKS[task].min_images)
    assert len(counts) == 3
    assert min(counts.values()) > 0
    assert counts.total() == TASKS[task].min_images


@pytest.mark.parametrize("task", NUM_IMAGES)
def test_splits_share_no_image(files, task):
    splits = defaultdict(set)
    for path, data in files[task].items():
        if path.startswith("images/"):
            splits[split_of_image(task, path)].add(data)
    assert len(splits) == 3
    assert all(len(images) == TASKS[task].image_counts(NUM_IMAGES[task])[split] for split, images in splits.items())
    assert all(first.isdisjoint(second) for first, second in combinations(splits.values(), 2))


def split_of_image(task, path):
    if task != "snli_ve":
        return re.split(r"[-_]", path.removeprefix("images/").removeprefix("COCO_"))[0]
    return triple(SEED, int(path.removeprefix("images/").removesuffix(".png")) // 3).split


@pytest.mark.parametrize("task", NUM_IMAGES)
def test_the_command_writes_what_the_function_gives(tmp_path, task):
    few = TASKS[task].min_images
    assert write_scenes(tmp_path / "out", num_images=few, seed=1, task=task)
    for path, data in task_files(task, num_images=few, seed=1):
        assert (tmp_path / "out" / path).read_bytes() == data
    assert not write_scenes(tmp_path / "out", num_images=few, seed=1, task=task)
    with pytest.raises(UserError, match="holds something else"):
        write_scenes(tmp_path / "out", num_images=few, seed=1, task="gqa")
    with pytest.raises(UserError, match=f"--images {few - 1}: expected at least {few}"):
        write_scenes(tmp_path / "fewer", num_images=few - 1, seed=1, task=task)


# NLVR2


@pytest.fixture(scope="module")
def statements(files):
    return {split: lines(files["nlvr2"][f"{split}.json"]) for split in ("train", "dev", "test1")}


def test_statements_have_the_fields_of_the_official_file_and_images_by_their_names(files, statements):
    fields = [
        "validation",
        "sentence",
        "left_url",
        "writer",
        "label",
        "right_url",
        "synset",
        "query",
        "identifier",
        "extra_validations",
    ]
    for split, rows in statements.items():
        assert len({row["identifier"] for row in rows}) == len(rows)
        for row in rows:
            assert list(row) == fields
            assert row["label"] in ("True", "False")
            of, _, _, _ = row["identifier"].split("-")
            assert of == split
            for side, field in enumerate(("left_url", "right_url")):
                name = f"images/{row['identifier'].rsplit('-', 1)[0]}-img{side}.png"
                assert row[field] == name
                assert Image.open(io.BytesIO(files["nlvr2"][name])).size == (64, 64)


def test_of_the_four_pairs_of_a_statement_two_are_true_so_the_text_alone_is_right_half_of_the_time(statements):
    for rows in statements.values():
        pairs = defaultdict(list)
        for row in rows:
            place = row["identifier"].split("-")
            pairs[place[1], place[3], row["sentence"]].append(row["label"])
        assert {tuple(sorted(labels)) for labels in pairs.values()} == {("False", "False", "True", "True")}
        assert best_by(rows, lambda row: row["sentence"], lambda row: row["label"]) == 0.5


def test_labels_of_statements_are_those_of_the_scenes(statements):
    for rows in statements.values():
        for row in rows:
            _, number, pair, _ = row["identifier"].split("-")
            scenes = pair_set(SEED, int(number)).pairs[int(pair)]
            assert row["label"] == str(is_true(row["sentence"], *scenes)), row


def is_true(sentence, left, right):
    """A second reading of the statements, over the things of both scenes."""
    words = [word for word in re.findall(r"\w+", sentence) if value_of(word)]
    a, b = ([count(scene, word) for word in words] for scene in (left, right))
    both, left_only, right_only = (
        "both images." in sentence,
        "in the left image." in sentence,
        "right image." in sentence,
    )
    if " more " in sentence:
        return a[0] > b[0] if left_only else b[0] > a[0]
    if len(words) == 2:
        return a[0] > 0 and b[1] > 0
    if " or in the right" in sentence:
        either = a[0] > 0 or b[0] > 0
        return not either if " no " in sentence else either
    assert both + left_only + right_only == 1, sentence
    return (a[0] > 0 or right_only) and (b[0] > 0 or left_only)


def value_of(word):
    singular = {f"{shape}es" if shape == "cross" else f"{shape}s": shape for shape in SHAPES}.get(word, word)
    return singular if singular in SHAPES or singular in COLORS else None


def count(scene, word):
    return sum(value_of(word) in (thing.shape, thing.color) for thing in scene.things)


def test_one_scene_of_two_says_little(statements):
    """Who counts what a statement speaks of in one scene, and knows how often that goes with which label."""
    rows = [row for rows in statements.values() for row in rows]

    def one_side(side):
        def seen(row):
            _, number, pair, _ = row["identifier"].split("-")
            words = [word for word in re.findall(r"\w+", row["sentence"]) if value_of(word)]
            family = " ".join(word for word in row["sentence"].split() if not value_of(word.strip(".")))
            return family, *(count(pair_set(SEED, int(number)).pairs[int(pair)][side], word) for word in words)

        return seen

    for side in (0, 1):
        assert 0.5 < best_by(rows, one_side(side), lambda row: row["label"]) < 0.8


def test_scenes_hold_no_more_than_the_statements_ask_for(statements):
    texts = (row["sentence"] for rows in statements.values() for row in rows)
    families = {re.sub(r"\b(an?|\w+s?)(?= shapes?)|" + "|".join(SHAPES), "_", text) for text in texts}
    assert len(families) >= 6
    assert {len(scene.things) for number in range(50) for pair in pair_set(SEED, number).pairs for scene in pair} == {
        2,
        3,
    }


# SNLI-VE


@pytest.fixture(scope="module")
def hypotheses(files):
    return {split: lines(files["snli_ve"][f"snli_ve_{split}.jsonl"]) for split in ("train", "dev", "test")}


def test_hypotheses_have_the_fields_of_the_official_file(files, hypotheses):
    fields = ["Flickr30K_ID", "annotator_labels", "captionID", "gold_label", "pairID", "sentence1", "sentence2"]
    rows = [row for rows in hypotheses.values() for row in rows]
    assert len({row["pairID"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == fields
        assert f"images/{row['Flickr30K_ID']}.png" in files["snli_ve"]


def test_every_hypothesis_has_each_label_equally_often_so_the_text_alone_is_right_one_time_in_three(hypotheses):
    for rows in hypotheses.values():
        labels = defaultdict(Counter)
        for row in rows:
            labels[row["sentence2"]][row["gold_label"]] += 1
        for counts in labels.values():
            assert set(counts) == {"entailment", "neutral", "contradiction"}
            assert len(set(counts.values())) == 1
        assert best_by(rows, lambda row: row["sentence2"], lambda row: row["gold_label"]) == pytest.approx(1 / 3)


def test_labels_of_hypotheses_are_those_of_what_can_be_seen(hypotheses):
    for split, rows in hypotheses.items():
        for row in rows:
            number, place = divmod(int(row["Flickr30K_ID"]), 3)
            made = triple(SEED, number)
            assert made.split == split
            assert row["gold_label"] == label_of(row["sentence2"], made.scenes[place]), row


def label_of(text, curtained):
    """By what can be seen: the shape that is named, or nothing of it."""
    shape, look = re.fullmatch(r"The (\w+) is (\w+)\.", text).groups()
    column, row = curtained.covered
    seen = [thing for thing in curtained.scene.things if (thing.column, thing.row) != (column, row)]
    named = [thing for thing in seen if thing.shape == shape]
    assert len(named) == len({thing.shape for thing in named}), "a shape is there once"
    if not named:
        return "neutral"
    return "entailment" if look in (named[0].color, named[0].size) else "contradiction"


def test_the_curtain_shows_nothing_of_what_it_hides():
    curtains = set()
    for number in range(20):
        for curtained in triple(SEED, number).scenes:
            x, y = (CELL_SIZE * place for place in curtained.covered)
            cell = draw(curtained)[y : y + CELL_SIZE, x : x + CELL_SIZE]
            assert {tuple(pixel) for pixel in cell.reshape(-1, 3).tolist()} == set(CURTAIN)
            curtains.add(cell.tobytes())
    assert len(curtains) == 1


# VQA v2


def test_questions_and_images_are_those_of_the_scenes(files):
    gqa = dict(scene_files(num_images=NUM_IMAGES["vqa"], seed=SEED))
    texts = [r["question"] for path, data in gqa.items() if "questions" in path for r in json.loads(data).values()]
    asked = [question for split in vqa_splits(files) for question in split[0]["questions"]]
    assert sorted(question["question"] for question in asked) == sorted(texts)
    for question in asked:
        names = [
            f"images/COCO_{split}_{question['image_id']:012d}.png" for split in ("train2014", "val2014", "test2015")
        ]
        (name,) = (name for name in names if name in files["vqa"])
        assert files["vqa"][name] == gqa[f"images/{question['image_id']:07d}.png"]


def vqa_splits(files):
    for split in ("train2014", "val2014", "test2015"):
        questions = json.loads(files["vqa"][f"v2_OpenEnded_mscoco_{split}_questions.json"])
        annotations = json.loads(files["vqa"][f"v2_mscoco_{split}_annotations.json"])
        assert questions["data_subtype"] == annotations["data_subtype"] == split
        yield questions, annotations


def test_every_question_has_an_annotation_in_the_official_layout(files):
    for questions, annotations in vqa_splits(files):
        assert set(questions) == {"info", "task_type", "data_type", "license", "data_subtype", "questions"}
        assert set(annotations) == {"info", "data_type", "license", "data_subtype", "annotations"}
        ids = [(question["question_id"], question["image_id"]) for question in questions["questions"]]
        assert ids == [(record["question_id"], record["image_id"]) for record in annotations["annotations"]]
        assert len(set(ids)) == len(ids)
        for record in annotations["annotations"]:
            assert record["answer_type"] == ("yes/no" if record["multiple_choice_answer"] in ("yes", "no") else "other")
            assert [answer["answer_id"] for answer in record["answers"]] == list(range(1, 11))
            assert {answer["answer_confidence"] for answer in record["answers"]} <= {"yes", "maybe", "no"}


def test_up_to_three_of_ten_annotators_err_and_each_number_is_as_frequent(files):
    errors = Counter()
    for _, annotations in vqa_splits(files):
        for record in annotations["annotations"]:
            given = Counter(answer["answer"] for answer in record["answers"])
            assert given.most_common(1)[0][0] == record["multiple_choice_answer"]
            errors[10 - given[record["multiple_choice_answer"]]] += 1
    assert set(errors) == {0, 1, 2, 3}
    assert np.allclose([count / errors.total() for count in errors.values()], 0.25, atol=0.03)


def test_the_answer_list_holds_every_training_answer(files):
    answers = json.loads(files["vqa"]["answer_list.json"])
    _, annotations = next(vqa_splits(files))
    given = {answer["answer"] for record in annotations["annotations"] for answer in record["answers"]}
    assert answers == sorted(given)
