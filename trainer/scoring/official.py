"""Every task but GQA for `duoflow score`: its files, and its scores as lines and as JSON."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from shards.errors import UserError
from shards.progress import Progress
from trainer.scoring import (
    anls_files,
    nlvr2,
    nlvr2_files,
    ranking,
    scored_files,
    snli_ve,
    snli_ve_files,
    vqa,
    vqa_files,
)
from trainer.scoring.anls import HITS, LONG, Definition, score_documents
from trainer.scoring.task import Scored

SNLI_VE_DIGITS = 4
"""As ALBEF logs its accuracy."""
MPDOCVQA_DIGITS = 4
"""As the framework logs its scores."""
MPDOCVQA_LABELS = {
    "accuracy": "Accuracy",
    "anls": "ANLS",
    "page_accuracy": "Retrieval precision",
    **{f"hit@{k}": f"Hit@{k}" for k in HITS},
    **{f"long_hit@{k}": f"Hit@{k}, {LONG} pages or more" for k in HITS},
}
"""In the framework's words, which has no more than the first three."""


def add_vqa_options(group: Any) -> list[argparse.Action]:
    """VQA's answers are in a file of their own."""
    return [group.add_argument("--annotations", metavar="F", type=Path, help="VQA's annotations of the questions")]


def add_no_options(group: Any) -> list[argparse.Action]:  # noqa: ARG001
    """Of a task that needs none."""
    return []


def score_vqa(arguments: argparse.Namespace) -> Scored:
    """VQA's official accuracies, in percent.

    Raises:
        UserError: --annotations is missing, or a file does not hold what it should.
    """
    questions = _only_file(arguments)
    if arguments.annotations is None:
        raise UserError("--task vqa: its answers are not in the questions; add --annotations F")
    with _reading([questions, arguments.annotations, arguments.predictions]) as progress:
        annotations = vqa_files.read_annotations(questions, arguments.annotations, progress.advance)
        results = vqa_files.read_results(arguments.predictions, annotations.keys(), progress.advance)
    exact = vqa.score_vqa(annotations, results)
    rounded = exact.rounded()
    result = rounded if arguments.rounded else exact
    scores = {
        "accuracy": result.accuracy,
        "perAnswerType": result.per_answer_type,
        "perQuestionType": result.per_question_type,
    }
    return Scored([*_vqa_lines(rounded)], _document(arguments, scores, {"questions": len(annotations)}))


def score_nlvr2(arguments: argparse.Namespace) -> Scored:
    """NLVR2's official accuracy and consistency, parts of 1. The script prints all their decimals.

    Raises:
        UserError: a file does not hold what it should.
    """
    questions = _only_file(arguments)
    with _reading([questions, arguments.predictions]) as progress:
        labels = nlvr2_files.read_labels(questions, progress.advance)
        predictions, num_unknown = nlvr2_files.read_predictions(arguments.predictions, labels, progress.advance)
    result = nlvr2.score_nlvr2(labels, predictions)
    lines = [
        f"precision={result.accuracy}",
        f"consistency={result.consistency}",
        "",
        f"{len(labels):,} pairs, {result.num_sentences:,} sentences",
    ]
    if num_unknown:
        lines[-1] += f"; {num_unknown:,} lines about other pairs are ignored"
    scores = {"accuracy": result.accuracy, "consistency": result.consistency}
    counts = {"questions": len(labels), "sentences": result.num_sentences, "unknown": num_unknown}
    return Scored(lines, _document(arguments, scores, counts))


def score_snli_ve(arguments: argparse.Namespace) -> Scored:
    """SNLI-VE's accuracy, over all pairs and over those of each true label, parts of 1.

    Raises:
        UserError: a file does not hold what it should.
    """
    questions = _only_file(arguments)
    with _reading([questions, arguments.predictions]) as progress:
        labels = snli_ve_files.read_labels(questions, progress.advance)
        predictions = snli_ve_files.read_predictions(arguments.predictions, labels, progress.advance)
    result = snli_ve.score_snli_ve(labels, predictions)
    lines = [f"Accuracy: {result.accuracy:.{SNLI_VE_DIGITS}f}", "", "Accuracy / label:"]
    lines += [
        f"  {label}: {value:.{SNLI_VE_DIGITS}f} ({result.num_pairs[label]:,} pairs)"
        for label, value in result.per_label.items()
    ]
    scores: dict[str, Any] = {"accuracy": result.accuracy, "perLabel": result.per_label}
    if arguments.rounded:
        per_label = {label: round(value, SNLI_VE_DIGITS) for label, value in result.per_label.items()}
        scores = {"accuracy": round(result.accuracy, SNLI_VE_DIGITS), "perLabel": per_label}
    return Scored(lines, _document(arguments, scores, {"questions": len(labels), "perLabel": result.num_pairs}))


def score_lxmert(arguments: argparse.Namespace) -> Scored:
    """The mean score of the answers as LXMERT's own code prints it, a part of 1.

    Raises:
        UserError: a file does not hold what it should.
    """
    questions = _only_file(arguments)
    with _reading([questions, arguments.predictions]) as progress:
        labels = scored_files.read_labels(questions, progress.advance)
        answers = scored_files.read_answers(arguments.predictions, labels, progress.advance)
    accuracy = sum(label.get(answers[name], 0.0) for name, label in labels.items()) / len(labels)
    lines = [f"Accuracy: {100 * accuracy:.2f} %", "", f"{len(labels):,} questions"]
    scores = {"accuracy": round(accuracy, 4) if arguments.rounded else accuracy}
    return Scored(lines, _document(arguments, scores, {"questions": len(labels)}))


def add_mpdocvqa_options(group: Any) -> list[argparse.Action]:
    """How answers are compared."""
    return [
        group.add_argument(
            "--anls",
            choices=get_args(Definition),
            default="framework",
            help="whose definition: the framework's, which compares in lower case, or GuiQuQu's (framework)",
        )
    ]


def score_mpdocvqa(arguments: argparse.Namespace) -> Scored:
    """MP-DocVQA's accuracy, ANLS, accuracy of the page and hit@k, parts of 1.

    Raises:
        UserError: a file does not hold what it should.
    """
    questions = _only_file(arguments)
    with _reading([questions, arguments.predictions]) as progress:
        truths = anls_files.read_truths(questions, progress.advance)
        answers = anls_files.read_answers(arguments.predictions, truths, progress.advance)
    result = score_documents(truths, answers, arguments.anls)
    num_long = sum(truth.num_pages >= LONG for truth in truths.values())
    return _document_scores(arguments, result, MPDOCVQA_LABELS, {"questions": len(truths), "long": num_long})


def score_retrieval(arguments: argparse.Namespace) -> Scored:
    """hit@k of pages ranked for MP-DocVQA's questions, parts of 1.

    Raises:
        UserError: a file does not hold what it should.
    """
    questions = _only_file(arguments)
    with _reading([questions, arguments.predictions]) as progress:
        windows = ranking.read_windows(questions, progress.advance)
        rankings = ranking.read_rankings(arguments.predictions, windows, progress.advance)
    result = ranking.score_rankings(windows, rankings)
    labels = MPDOCVQA_LABELS | {"accuracy": MPDOCVQA_LABELS["page_accuracy"]}
    num_long = sum(len(window.pages) >= LONG for window in windows.values())
    return _document_scores(arguments, result, labels, {"questions": len(windows), "long": num_long})


def _document_scores(
    arguments: argparse.Namespace, result: Mapping[str, float], labels: Mapping[str, str], counts: dict[str, int]
) -> Scored:
    lines = [f"{labels[cell]}: {value:.{MPDOCVQA_DIGITS}f}" for cell, value in result.items()]
    lines += ["", f"{counts['questions']:,} questions, {counts['long']:,} of them about {LONG} pages or more"]
    scores = {
        _camel_case(cell): round(value, MPDOCVQA_DIGITS) if arguments.rounded else value
        for cell, value in result.items()
    }
    return Scored(lines, _document(arguments, scores, counts))


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


def _vqa_lines(result: vqa.VqaResult) -> Iterator[str]:
    """As vqaEvalDemo.py prints them, without its empty lines."""
    yield f"Overall Accuracy is: {result.accuracy:.2f}"
    yield ""
    yield "Per Question Type Accuracy is the following:"
    for name, value in result.per_question_type.items():
        yield f"{name} : {value:.2f}"
    yield ""
    yield "Per Answer Type Accuracy is the following:"
    for name, value in result.per_answer_type.items():
        yield f"{name} : {value:.2f}"


def _only_file(arguments: argparse.Namespace) -> Path:
    """--questions takes several files for GQA alone."""
    if len(arguments.questions) > 1:
        raise UserError(f"--questions: --task {arguments.task} takes one file; found {len(arguments.questions)}")
    return arguments.questions[0]


def _reading(paths: Sequence[Path]) -> Progress:
    """Over all files; one that is not there is found when it is opened."""
    return Progress("reading", sum(path.stat().st_size for path in paths if path.is_file()), "bytes")


def _document(arguments: argparse.Namespace, scores: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    return {"task": arguments.task, "scores": scores, "counts": counts}
