"""Rows of a head over answers are found by what the answers are called, as LXMERT's own code finds them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LxmertForPreTraining

from model.parts.classify import ClassHead
from model.towers.answer_head import AnswerHead, called, load_answer_head, read_answer_list, start_from
from model.towers.hub import load_pretrained
from shards.errors import ConfigError
from tests.regions import tiny_lxmert

LIST = ("yes", "2", "gray", "dog", "man", "10")


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("two", "2"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("grey", "gray"),
        ("a dog", "dog"),
        ("an apple", "apple"),
        ("the man", "man"),
        ("The two.", "2"),
        ("a an the x", "x"),
        ("the a b", "a b"),
        ("another", "another"),
        ("u.s.", "u.s"),
        ("", ""),
    ],
)
def test_an_answer_is_called_as_in_lxmerts_list(answer: str, name: str):
    assert called(answer) == name


def head_of(width: int, classes: int) -> ClassHead:
    torch.manual_seed(5)
    return ClassHead("lxmert", width=width, rows_per_item=1, num_classes=classes)


def test_rows_are_taken_by_answer_and_those_of_unknown_ones_are_zero(tmp_path: Path):
    directory = tiny_lxmert(tmp_path)
    source = LxmertForPreTraining.from_pretrained(directory).answer_head.logit_fc.state_dict()
    classes = ("Grey", "unheard of", "a dog", "two", "yes")
    head = head_of(24, len(classes))
    assert start_from(head.layers, classes, load_answer_head(directory, LIST)) == 4
    own = head.layers.state_dict()
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        assert torch.equal(own[name], source[name]), name
    for place, row in enumerate((2, None, 3, 1, 0)):
        for name in ("3.weight", "3.bias"):
            expected = torch.zeros_like(own[name][0]) if row is None else source[name][row]
            assert torch.equal(own[name][place], expected), (name, place)


def test_a_row_is_found_as_it_is_written_and_then_by_what_both_are_called(tmp_path: Path):
    directory = tiny_lxmert(tmp_path)
    source = LxmertForPreTraining.from_pretrained(directory).answer_head.logit_fc.state_dict()
    answers = ("two", "grey", "Yes", "2", "a dog", "gray")
    classes = ("two", "2", "Grey", "gray", "yes", "dog", "Two")
    head = head_of(24, len(classes))
    assert start_from(head.layers, classes, load_answer_head(directory, answers)) == len(classes)
    for place, row in enumerate((0, 3, 1, 5, 2, 4, 0)):
        assert torch.equal(head.layers.state_dict()["3.weight"][place], source["3.weight"][row]), classes[place]


def test_the_names_may_stand_in_its_config(tmp_path: Path):
    directory = tiny_lxmert(tmp_path)
    with pytest.raises(ConfigError, match=r"answers\.start_list: is not set, and config\.json of .* names no answers"):
        load_answer_head(directory, None)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = dict(enumerate(LIST))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_answer_head(directory, None).answers == LIST


def test_a_list_of_another_length_or_a_head_of_another_width_is_one_line(tmp_path: Path):
    directory = tiny_lxmert(tmp_path)
    with pytest.raises(ConfigError, match=r"answers\.start_list: 2 answers, but the head of .* has 6"):
        load_answer_head(directory, LIST[:2])
    with pytest.raises(ConfigError, match=r"answers\.start_from: its head is of another form or width \(0\.weight"):
        start_from(head_of(8, 2).layers, ("yes", "no"), load_answer_head(directory, LIST))
    albef = ClassHead("albef", width=24, rows_per_item=1, num_classes=2)
    with pytest.raises(ConfigError, match=r"of another form or width"):
        start_from(albef.layers, ("yes", "no"), load_answer_head(directory, LIST))


def test_lists_are_texts_or_lxmerts_records(tmp_path: Path):
    path = tmp_path / "all_ans.json"
    path.write_text(json.dumps([{"ans": "yes", "dsets": ["vqa"]}, {"ans": "2"}]))
    assert read_answer_list(path, "answers.start_list") == ("yes", "2")
    path.write_text(json.dumps(["yes", "2"]))
    assert read_answer_list(path, "answers.start_list") == ("yes", "2")
    path.write_text('{"yes": 0}')
    with pytest.raises(ConfigError, match=r"answers\.start_list: .*all_ans\.json: .*expected a JSON list of answers"):
        read_answer_list(path, "answers.start_list")
    with pytest.raises(ConfigError, match=r"answers\.start_list: .*gone: cannot be read"):
        read_answer_list(tmp_path / "gone", "answers.start_list")


def test_the_head_that_is_read_is_no_part_of_the_model(tmp_path: Path):
    directory = tiny_lxmert(tmp_path)
    assert isinstance(load_answer_head(directory, LIST), AnswerHead)
    model = load_pretrained(directory, ("LxmertForPreTraining",)).model
    assert not any("answer_head" in name for name in model.state_dict())
