"""The rendered set: same bytes for the same seed, answers that its pictures bear out, GQA's structure throughout."""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from shards.errors import UserError
from shards.scenes import add_scenes_parser, command, scene_files, write_scenes
from shards.scenes.raster import bounding_box, paint
from shards.scenes.world import COLORS, SPLITS, Dice, scene, split_of

NUM_IMAGES = 400
DIGEST_OF_8_IMAGES_SEED_0 = "563d3cbc9541ac0e0e8b3d076a836eed1ab2ceddbbc212f8f8371898e4f9c5d5"


@pytest.fixture(scope="module")
def rendered():
    return dict(scene_files(num_images=NUM_IMAGES, seed=3))


@pytest.fixture(scope="module")
def questions(rendered):
    """Question id -> record, over all splits."""
    return merged(rendered, "balanced_questions")


@pytest.fixture(scope="module")
def graphs(rendered):
    return merged(rendered, "sceneGraphs")


def merged(files, name):
    return {key: entry for split in SPLITS for key, entry in json.loads(files[f"{split}_{name}.json"]).items()}


def digest(files):
    return hashlib.sha256(b"".join(path.encode() + data for path, data in files.items())).hexdigest()


def run(*words):
    parser = argparse.ArgumentParser()
    add_scenes_parser(parser.add_subparsers())
    arguments = parser.parse_args(["scenes", *map(str, words)])
    return arguments.handler(arguments)


# A second implementation of the answers: GQA's functional program, run over a scene graph.


def answer_by_program(program, graph):
    """The answer, or None where the scene does not allow the question."""
    results = []
    for step in program:
        operation, _, what = step["operation"].partition(" ")
        inputs = [results[i] for i in step["dependencies"]]
        results.append(OPERATIONS[operation](graph, inputs, step["argument"], what))
        if results[-1] is None:
            return None
    return results[-1]


def select(graph, _inputs, argument, _what):
    name = argument.split(" (")[0]
    if name == "scene":
        return [graph]
    return [thing for thing in graph["objects"].values() if name in ("shape", thing["name"])]


def value_of(thing, what):
    middle = thing.get("x", 0) + thing.get("w", 0) / 2, thing.get("y", 0) + thing.get("h", 0) / 2
    return {
        "name": lambda: thing["name"],
        "color": lambda: thing["attributes"][0],
        "size": lambda: thing["attributes"][1],
        "weather": lambda: thing["weather"],
        "hposition": lambda: "left" if middle[0] < 32 else "right",
        "vposition": lambda: "top" if middle[1] < 32 else "bottom",
    }[what]()


def unique_value(things, what):
    return value_of(things[0], what) if len(things) == 1 else None


def verify(graph, inputs, argument, what):
    if what == "rel":
        name, relation, _ = argument.split(",")
        (others,) = inputs
        things = [thing for thing in graph["objects"].values() if thing["name"] == name]
        return yes(related(things[0], relation, others[0])) if things and others else None
    found = unique_value(inputs[0], what)
    return found and yes(found == argument)


def choose(graph, inputs, argument, what):
    if what == "rel":
        name, relations, _ = argument.split(",")
        things = [thing for thing in graph["objects"].values() if thing["name"] == name]
        if not things or not inputs[0]:
            return None
        holding = [r for r in relations.split("|") if related(things[0], r, inputs[0][0])]
        return holding[0].removeprefix("to the ").removesuffix(" of") if holding else None
    found = unique_value(inputs[0], what)
    return found if found in argument.split("|") else None


def related(thing, relation, other):
    """By the boxes alone: the grid keeps things a cell apart, or in line to a few pixels."""
    step = {k: value_of(other, k) != value_of(thing, k) for k in ("hposition", "vposition")}
    return {
        "to the left of": step["hposition"] and thing["x"] < other["x"],
        "to the right of": step["hposition"] and thing["x"] > other["x"],
        "above": step["vposition"] and thing["y"] < other["y"],
        "below": step["vposition"] and thing["y"] > other["y"],
    }[relation]


def relate(graph, inputs, argument, _what):
    relation = argument.split(",")[1]
    return [thing for thing in graph["objects"].values() for other in inputs[0] if related(thing, relation, other)]


def equal_values(inputs, what):
    values = [unique_value(things, what) for things in inputs]
    return None if None in values else values[0] == values[1]


def same(_graph, inputs, _argument, what):
    equal = equal_values(inputs, what)
    return equal if equal is None else yes(equal)


def different(_graph, inputs, _argument, what):
    equal = equal_values(inputs, what)
    return equal if equal is None else yes(not equal)


def yes(holds):
    return "yes" if holds else "no"


OPERATIONS = {
    "select": select,
    "filter": lambda _graph, inputs, argument, what: [t for t in inputs[0] if value_of(t, what) == argument],
    "exist": lambda _graph, inputs, _argument, _what: yes(bool(inputs[0])),
    "query": lambda _graph, inputs, argument, _what: unique_value(inputs[0], argument),
    "and": lambda _graph, inputs, _argument, _what: yes(inputs == ["yes", "yes"]),
    "or": lambda _graph, inputs, _argument, _what: yes("yes" in inputs),
    "verify": verify,
    "choose": choose,
    "relate": relate,
    "same": same,
    "different": different,
}


def test_every_answer_is_what_its_program_finds_in_the_scene_graph(questions, graphs):
    for question_id, record in questions.items():
        found = answer_by_program(record["semantic"], graphs[record["imageId"]])
        assert found == record["answer"], (question_id, record["question"])


def test_an_entailed_answer_holds_in_every_scene_that_gives_the_first_answer(questions, graphs):
    tried = 0
    scenes = list(graphs.values())[:60]
    for record in list(questions.values())[:500]:
        agreeing = [g for g in scenes if answer_by_program(record["semantic"], g) == record["answer"]]
        for other in map(questions.__getitem__, record["entailed"]):
            assert other["imageId"] == record["imageId"]
            for graph in agreeing:
                found = answer_by_program(other["semantic"], graph)
                tried += found is not None
                assert found in (other["answer"], None), (record["question"], other["question"])
    assert tried > 1000


def test_equivalent_questions_ask_the_same_of_the_same_picture(questions):
    groups = Counter()
    for question_id, record in questions.items():
        assert question_id in record["equivalent"]
        assert question_id not in record["entailed"]
        for other in map(questions.__getitem__, record["equivalent"]):
            assert (other["semanticStr"], other["answer"]) == (record["semanticStr"], record["answer"])
        groups[len(record["equivalent"])] += 1
    assert groups[2] > 0


def test_records_have_the_structure_of_gqa(questions, graphs, rendered):
    choices = merged(rendered, "choices")
    assert choices.keys() == questions.keys()
    keys = "semantic entailed equivalent question imageId isBalanced groups answer semanticStr annotations types "
    for question_id, record in questions.items():
        assert list(record) == [*keys.split(), "fullAnswer"]
        assert list(record["groups"]) == ["global", "local"]
        assert list(record["types"]) == ["structural", "semantic", "detailed"]
        assert list(record["annotations"]) == ["answer", "question", "fullAnswer"]
        assert record["answer"] in choices[question_id]["plausible"]
        assert set(choices[question_id]["plausible"]) <= set(choices[question_id]["valid"])
        if record["types"]["structural"] == "choose":
            assert len(choices[question_id]["valid"]) == 2
    for graph in graphs.values():
        assert graph["width"] == graph["height"] == 64
        for thing in graph["objects"].values():
            assert list(thing) == ["name", "x", "y", "w", "h", "attributes", "relations"]
            assert all(relation["object"] in graph["objects"] for relation in thing["relations"])


def test_annotations_point_at_words_that_name_the_object(questions, graphs):
    pointed = 0
    for record in questions.values():
        objects = graphs[record["imageId"]]["objects"]
        for place, text in (("question", record["question"]), ("fullAnswer", record["fullAnswer"])):
            words = re.findall(r"\w+|[^\w\s]", text)
            for position, object_id in record["annotations"][place].items():
                start, _, end = position.partition(":")
                phrase = words[int(start) : int(end or int(start) + 1)]
                thing = objects[object_id]
                assert set(phrase) <= {thing["name"], "shape", *thing["attributes"]}
                pointed += 1
        for object_id in record["annotations"]["answer"].values():
            assert objects[object_id]["name"] == record["answer"]
    assert pointed > len(questions)


def test_all_five_structural_and_semantic_types_and_twenty_answers_are_there(rendered):
    for split in ("train", "testdev"):
        records = json.loads(rendered[f"{split}_balanced_questions.json"]).values()
        structural = Counter(record["types"]["structural"] for record in records)
        assert set(structural) == {"verify", "query", "choose", "logical", "compare"}
        assert {record["types"]["semantic"] for record in records} == {"obj", "attr", "cat", "rel", "global"}
        assert len({record["answer"] for record in records}) >= 20


def test_yes_and_no_are_equally_likely_in_every_template(questions):
    answers = defaultdict(Counter)
    for record in questions.values():
        if record["answer"] in ("yes", "no"):
            answers[record["types"]["detailed"]][record["answer"]] += 1
    assert len(answers) >= 8
    for template, counts in answers.items():
        spread = 4 * (counts.total() / 4) ** 0.5  # four standard deviations of a fair coin
        assert abs(counts["yes"] - counts.total() / 2) < spread, (template, counts)


def test_the_same_seed_gives_the_same_bytes_on_every_machine():
    assert digest(dict(scene_files(num_images=8, seed=0))) == DIGEST_OF_8_IMAGES_SEED_0


def test_the_nth_of_a_list_comes_first_with_a_chance_of_one_in_n_plus_one_to_scale():
    options, draws = "abcd", 4000
    first = [Dice(seed=0, image=image).shuffle_by_rank(options, "purpose")[0] for image in range(draws)]
    scale = sum(1 / (rank + 2) for rank in range(len(options)))
    for rank, option in enumerate(options):
        assert first.count(option) / draws == pytest.approx(1 / (rank + 2) / scale, abs=0.025)


def test_another_seed_gives_another_set(rendered):
    other = dict(scene_files(num_images=20, seed=4))
    assert not {data for path, data in other.items() if path in rendered} & set(rendered.values())


def test_a_picture_and_its_split_do_not_depend_on_how_many_are_rendered(rendered):
    few = dict(scene_files(num_images=12, seed=3))
    images = {path: data for path, data in few.items() if path.startswith("images/")}
    assert len(images) == 12
    assert images.items() <= rendered.items()
    for split in SPLITS:
        path = f"{split}_balanced_questions.json"
        assert json.loads(few[path]).items() <= json.loads(rendered[path]).items()


def test_splits_share_no_picture_and_leave_none_out(rendered):
    ids = [image_id for split in SPLITS for image_id in json.loads(rendered[f"{split}_sceneGraphs.json"])]
    assert len(ids) == len(set(ids)) == NUM_IMAGES
    assert len({data for path, data in rendered.items() if path.startswith("images/")}) == NUM_IMAGES
    assert {split_of(image) for image in range(4)} == set(SPLITS)


def test_png_files_decode_to_the_painted_pixels(rendered):
    for number in range(10):
        with Image.open(io.BytesIO(rendered[f"images/{number:07d}.png"])) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
            assert np.array_equal(np.asarray(image), paint(scene(3, number)))


def test_boxes_are_the_pixels_of_their_thing():
    for number in range(50):
        shown = scene(3, number)
        pixels = paint(shown).astype(int)
        sky = (pixels == shown.sky).all(axis=2)
        for thing in shown.things:
            x, y, width, height = bounding_box(thing)
            inside = ~sky[y : y + height, x : x + width]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            assert abs(np.array(thing.rgb) - COLORS[thing.color]).max() <= 8
            sky[y : y + height, x : x + width] = True
        assert sky.all(), "every painted pixel lies in a box"


def test_rendering_again_says_so_and_keeps_what_else_is_there(tmp_path, capsys):
    out = tmp_path / "new" / "scenes"
    assert run(out, "--images", 6, "--seed", 1) == 0
    assert "rendered" in capsys.readouterr().out
    (out / "shards").mkdir()
    assert run(out, "--images", 6, "--seed", 1) == 0
    assert "already there" in capsys.readouterr().out
    assert (out / "shards").is_dir()
    assert [path.name for path in out.parent.iterdir()] == ["scenes"]


@pytest.mark.parametrize("damage", ["other seed", "changed image", "missing file"])
def test_other_content_is_refused_and_left_alone(tmp_path, damage):
    out = tmp_path / "scenes"
    write_scenes(out, num_images=6, seed=1)
    path = out / "images" / "0000002.png"
    if damage == "changed image":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif damage == "missing file":
        path.unlink()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="holds something else"):
        write_scenes(out, num_images=6, seed=2 if damage == "other seed" else 1)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_failure_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    def files(**_):
        yield "images/0000000.png", b"first"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "scene_files", files)
    with pytest.raises(UserError, match="No space left"):
        write_scenes(tmp_path / "scenes", num_images=6, seed=1)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="--images 3: expected at least 4"):
        write_scenes(tmp_path / "scenes", num_images=3, seed=0)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="is a file"):
        write_scenes(tmp_path / "file", num_images=4, seed=0)
    assert (tmp_path / "file").read_text() == "kept"


def test_rendering_needs_no_torch():
    code = "import sys, shards.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
