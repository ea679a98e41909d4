"""Both guesses are measured by the task's own scores, over the questions that a validation asks."""

import logging
from types import SimpleNamespace

import pytest

from shards.format.records import Question
from tests.runs import Project
from trainer.build import open_split
from trainer.scoring.baselines import Guesses
from trainer.tasks import task_named
from trainer.training import baselines as module
from trainer.training.baselines import baselines, report_baselines


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project.write(tmp_path_factory.mktemp("baselines"))


def questions(project: Project, name: str) -> list[Question]:
    split = open_split(project.config(), name)
    return [
        question
        for image in range(len(split.visits.num_questions))
        for question in split.reader.sample(image).questions
    ]


def test_they_are_the_shares_of_right_guesses(project: Project):
    config = project.config()
    train, val = open_split(config, "train"), open_split(config, "val")
    found = baselines(train, val, val.visits.num_questions, task_named("gqa"), "val")
    guesses, asked = Guesses(questions(project, "train")), questions(project, "val")
    majority = sum(question.answer == guesses.majority for question in asked) / len(asked)
    blind = sum(question.answer == guesses.blind(question) for question in asked) / len(asked)
    assert found == {"val/majority_accuracy": majority, "val/question_only_accuracy": blind}
    assert 0 < majority <= blind < 1


def test_images_that_are_not_asked_about_count_nothing(project: Project):
    config = project.config()
    train, val = open_split(config, "train"), open_split(config, "val")
    asked = val.visits.num_questions.copy()
    asked[1:] = 0
    (first,) = (val.reader.sample(0).questions,)
    guesses = Guesses(questions(project, "train"))
    right = sum(question.answer == guesses.majority for question in first) / len(first)
    assert baselines(train, val, asked, task_named("gqa"), "val")["val/majority_accuracy"] == right


def test_too_many_questions_are_not_read(project: Project, monkeypatch):
    monkeypatch.setattr(module, "MOST_QUESTIONS", 3)
    config = project.config()
    train, val = open_split(config, "train"), open_split(config, "val")
    assert baselines(train, val, val.visits.num_questions, task_named("gqa"), "val") == {}


def test_the_end_of_a_run_shows_the_best_accuracy_beside_them(project: Project, caplog):
    config = project.config()
    train, val = open_split(config, "train"), open_split(config, "val")
    batches = SimpleNamespace(split=val, order=SimpleNamespace(visits=val.visits))
    run = SimpleNamespace(
        validation=(batches, None), config=config, train_batches=SimpleNamespace(split=train), task=task_named("gqa")
    )
    state = SimpleNamespace(early_stopping=SimpleNamespace(best=0.875), metrics={"val/accuracy": 0.5})
    with caplog.at_level(logging.INFO):
        report_baselines(run, state)
    assert "this model" in caplog.text
    assert "87.5 %" in caplog.text
    caplog.clear()
    report_baselines(SimpleNamespace(validation=None), state)
    assert caplog.text == ""
