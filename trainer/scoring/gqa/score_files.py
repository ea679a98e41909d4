"""GQA's official scores of a file of predictions: which files a score needs, and how they have to fit together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.annotations.gqa import expand
from shards.errors import DataError, UserError
from shards.format.index import open_index
from shards.progress import Progress
from trainer.scoring.gqa.attentions import AttentionForm, read_attentions
from trainer.scoring.gqa.predictions import read_choices, read_predictions
from trainer.scoring.gqa.questions import QuestionSet, read_answers, read_questions
from trainer.scoring.gqa.scenes import Advance, read_scenes
from trainer.scoring.gqa.scores import GqaAnswers, GqaScores, Numbers, entailed_by_correct, score_answers

FIXES = ("scene-region", "rows-first", "overlaps-once")
"""Departures from the official script that can be asked for by name."""


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """What to score, and where to depart from the official script."""

    questions: Sequence[Path]
    """Files, or directories of chunks."""
    predictions: Path
    choices: Path | None = None
    scene_graphs: Path | None = None
    attentions: Path | None = None
    train_questions: Sequence[Path] = ()
    train_shards: Path | None = None
    consistency: bool = False
    """Insist on it: without, it is given if everything that it needs is there."""
    missing_is_wrong: bool = False
    ignore_unknown: bool = False
    normalize: Sequence[str] = ()
    fixes: Sequence[str] = ()
    object_features: bool = False
    show_progress: bool = False


@dataclass(frozen=True)
class ScoreReport:
    """The scores, and what is to be said about them."""

    scores: GqaScores
    unavailable: dict[str, str]
    """Metric -> why there is none, and what would give it."""
    ceiling: float | None
    """Percent of scored questions whose answer occurs in training."""
    counts: dict[str, int]
    """questions, balanced, predictions, unanswered (balanced ones without a prediction), unknown (predictions)."""


def score_files(request: ScoreRequest) -> ScoreReport:
    """Read the files of an evaluation and score them.

    Raises:
        UserError: files or options do not fit together.
        DataError: a file cannot be read, or does not hold what it should; the message names file and entry.
    """
    _check_options(request)
    paths = expand(request.questions)
    with Progress("reading", _total_bytes(request, paths), "bytes", show=request.show_progress) as progress:
        advance = progress.advance
        questions = _questions(request, paths, advance)
        predictions = read_predictions(
            request.predictions,
            questions,
            advance,
            normalize=request.normalize,
            ignore_unknown=request.ignore_unknown,
        )
        unanswered = _unanswered(request, questions, predictions.predicted)
        valid = plausible = grounding = None
        if request.choices is not None:
            valid, plausible = read_choices(request.choices, questions, predictions.predicted, advance)
        if request.attentions is not None:
            grounding = read_attentions(request.attentions, questions, advance, _attention_form(request))
        known_answers = _training_answers(request, advance)
    answers = GqaAnswers(predicted=predictions.predicted, valid=valid, plausible=plausible, grounding=grounding)
    no_consistency = _why_no_consistency(request, questions, answers)
    scores = score_answers(questions.columns, answers, consistency=no_consistency is None)
    counts = {
        "questions": questions.num_questions,
        "balanced": len(questions.columns.scored),
        "predictions": predictions.num_entries,
        "unanswered": unanswered,
        "unknown": predictions.num_unknown,
    }
    ceiling = None if known_answers is None else _ceiling(questions, known_answers)
    return ScoreReport(scores, _unavailable(scores, no_consistency), ceiling, counts)


def _questions(request: ScoreRequest, paths: Sequence[Path], advance: Advance) -> QuestionSet:
    scenes = None if request.scene_graphs is None else read_scenes(request.scene_graphs, advance)
    return read_questions(paths, advance, scenes=scenes, scene_region="scene-region" in request.fixes)


def _unanswered(request: ScoreRequest, questions: QuestionSet, predicted: Numbers) -> int:
    """How many balanced questions have no prediction, where that is allowed; with --consistency every question counts,
    as in the official script."""
    columns = questions.columns
    asked = np.flatnonzero(columns.gold >= 0) if request.consistency else columns.scored
    without = asked[predicted[asked] < 0]
    if len(without) and not request.missing_is_wrong:
        kind = "" if request.consistency else "balanced "
        raise DataError(
            f"{request.predictions}: no prediction for {len(without):,} of {len(asked):,} {kind}questions, such as "
            f"{questions.ids.texts[without[0]]!r}; answer them too, or pass --missing wrong"
        )
    return int((predicted[columns.scored] < 0).sum())


def _why_no_consistency(request: ScoreRequest, questions: QuestionSet, answers: GqaAnswers) -> str | None:
    """What the consistency lacks; None if nothing.

    Raises:
        DataError: something, and it was insisted on.
    """
    entailed = entailed_by_correct(questions.columns, answers)
    unknown = questions.columns.gold[entailed] < 0
    if request.consistency:
        if unknown.any():
            raise DataError(
                f"--consistency: {int(unknown.sum()):,} of {len(entailed):,} entailed questions are not there, such as "
                f"{questions.ids.texts[entailed[np.argmax(unknown)]]!r}; give --questions of all questions, not of the "
                "balanced ones alone"
            )
        return None
    lacking = int((unknown | (answers.predicted[entailed] < 0)).sum())
    if lacking:
        return f"needs all questions and their predictions: {lacking:,} of {len(entailed):,} entailed ones are missing"
    return None


def _attention_form(request: ScoreRequest) -> AttentionForm:
    return AttentionForm(
        object_boxes=request.object_features,
        rows_first="rows-first" in request.fixes,
        overlaps_once="overlaps-once" in request.fixes,
    )


def _check_options(request: ScoreRequest) -> None:
    """Raises:
    UserError: an option needs another one, or excludes it.
    """
    if (request.scene_graphs is None) != (request.attentions is None):
        there, lacking = "--attentions", "--scene-graphs"
        if request.attentions is None:
            there, lacking = lacking, there
        raise UserError(f"{there} without {lacking}: the grounding needs both; add {lacking} F")
    of_grounding = [f"--fix {fix}" for fix in request.fixes] + ["--object-features"] * request.object_features
    if of_grounding and request.attentions is None:
        raise UserError(f"{of_grounding[0]} changes the grounding only; add --scene-graphs F --attentions F")
    if request.object_features and "rows-first" in request.fixes:
        raise UserError("--fix rows-first is about maps, and --object-features says that there are none; drop one")


def _training_answers(request: ScoreRequest, advance: Advance) -> set[str] | None:
    """Every answer of the training questions and shards; None if none were given."""
    if not request.train_questions and request.train_shards is None:
        return None
    answers = read_answers(expand(request.train_questions), advance)
    return answers if request.train_shards is None else answers | open_index(request.train_shards).answers.keys()


def _ceiling(questions: QuestionSet, known: set[str]) -> float:
    is_known = np.fromiter((text in known for text in questions.texts.texts), bool, len(questions.texts.texts))
    return 100 * float(is_known[questions.columns.gold[questions.columns.scored]].mean())


def _unavailable(scores: GqaScores, no_consistency: str | None) -> dict[str, str]:
    reasons = {
        "binary": "no such question",
        "open": "no such question",
        "consistency": no_consistency or "no correctly answered question entails another",
        "validity": "needs --choices",
        "plausibility": "needs --choices",
        "grounding": "needs --scene-graphs and --attentions",
        "distribution": "no question has a global group",
    }
    return {name: reasons[name] for name, value in scores.as_metrics().items() if value is None}


def _total_bytes(request: ScoreRequest, paths: Sequence[Path]) -> int:
    """Of all files that are read; one that is not there is found when it is opened."""
    more = (request.predictions, request.choices, request.scene_graphs, request.attentions)
    files = [*paths, *expand(request.train_questions), *(path for path in more if path is not None)]
    return sum(path.stat().st_size for path in files if path.is_file())
