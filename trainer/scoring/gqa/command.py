"""GQA for `duoflow score`: its options, and its official scores as lines and as JSON."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.scoring.gqa.predictions import NORMALIZATIONS
from trainer.scoring.gqa.score_files import FIXES, ScoreReport, ScoreRequest, score_files
from trainer.scoring.task import Scored

TITLES = {
    "structural": "Accuracy / structural type",
    "semantic": "Accuracy / semantic type",
    "steps": "Accuracy / steps number",
    "length": "Accuracy / words number",
}
"""Of the breakdowns, in the words of the official script."""

DIGITS = 2
"""Behind the point, in what the official script prints."""

OFFICIAL_NAMES = {
    "structural": "accuracyPerStructuralType",
    "semantic": "accuracyPerSemanticType",
    "steps": "accuracyPerSteps",
    "length": "accuracyPerLength",
}


def add_options(group: Any) -> list[argparse.Action]:
    """Add the options that only GQA's scores take, and name them."""
    add = group.add_argument
    return [
        add("--choices", metavar="F", type=Path, help="GQA's choices: gives validity and plausibility"),
        add("--scene-graphs", metavar="F", type=Path, help="GQA's scene graphs: gives grounding, with --attentions"),
        add("--attentions", metavar="F", type=Path, help='[{"questionId": ..., "attention": [[...], ...]}, ...]'),
        add(
            "--object-features", action="store_true", help="attentions are boxes [x0, y0, x1, y1, attention], not maps"
        ),
        add("--consistency", action="store_true", help="fail where it cannot be had, instead of leaving it out"),
        add(
            "--train-questions",
            metavar="F",
            type=Path,
            nargs="+",
            default=[],
            help="show what training's answers can reach",
        ),
        add("--train-shards", metavar="DIR", type=Path, help="the same, from shards of the training split"),
        add("--missing", choices=("fail", "wrong"), default="fail", help="wrong: no prediction is a wrong one"),
        add(
            "--unknown",
            choices=("fail", "ignore"),
            default="fail",
            help="ignore: predictions for other questions may be there",
        ),
        add(
            "--normalize",
            choices=tuple(NORMALIZATIONS),
            nargs="+",
            action="extend",
            default=[],
            help="change predictions before comparing",
        ),
        add(
            "--fix",
            choices=FIXES,
            nargs="+",
            action="extend",
            default=[],
            help="depart from the official script's grounding",
        ),
    ]


def score(arguments: argparse.Namespace) -> Scored:
    """GQA's official scores.

    Raises:
        UserError: files or options do not fit together.
    """
    request = ScoreRequest(
        questions=arguments.questions,
        predictions=arguments.predictions,
        choices=arguments.choices,
        scene_graphs=arguments.scene_graphs,
        attentions=arguments.attentions,
        object_features=arguments.object_features,
        consistency=arguments.consistency,
        train_questions=arguments.train_questions,
        train_shards=arguments.train_shards,
        missing_is_wrong=arguments.missing == "wrong",
        ignore_unknown=arguments.unknown == "ignore",
        normalize=arguments.normalize,
        fixes=arguments.fix,
        show_progress=True,
    )
    report = score_files(request)
    document = report_document(request, report)
    if arguments.rounded:
        document["scores"] = _rounded(document["scores"])
    return Scored([*report_lines(report)], document)


def report_lines(report: ScoreReport) -> Iterator[str]:
    """The scores in the words and the order of the official script; `-` and the reason where there is none."""
    for name, value in report.scores.as_metrics().items():
        title = name.capitalize()
        if value is None:
            yield f"{title}: - ({report.unavailable[name]})"
        elif name == "distribution":
            yield f"{title}: {value:.2f} (lower is better)"
        elif name == "accuracy" and report.ceiling is not None:
            yield f"{title}: {value:.2f}% (at most {report.ceiling:.2f}% with the answers of training)"
        else:
            yield f"{title}: {value:.2f}%"
    for kind, title in TITLES.items():
        yield ""
        yield f"{title}:"
        for name, share in report.scores.breakdown(kind).items():
            yield f"  {name}: {share.percent:.2f}% ({share.questions:,} questions)"
    counts = report.counts
    yield ""
    yield f"{counts['balanced']:,} balanced of {counts['questions']:,} questions, {_described_predictions(counts)}"


def report_document(request: ScoreRequest, report: ScoreReport) -> dict[str, Any]:
    """The scores under the official script's names, in percent, each breakdown as [percent, questions]; how they were
    asked for beside them."""
    scores = {
        **report.scores.as_metrics(),
        **{
            official: {name: list(share) for name, share in report.scores.breakdown(kind).items()}
            for kind, official in OFFICIAL_NAMES.items()
        },
    }
    return {
        "scores": scores,
        "unavailable": report.unavailable,
        "answer_vocabulary_ceiling": report.ceiling,
        "counts": report.counts,
        "options": {
            "consistency": request.consistency,
            "missing": "wrong" if request.missing_is_wrong else "fail",
            "unknown": "ignore" if request.ignore_unknown else "fail",
            "normalize": list(request.normalize),
            "fix": list(request.fixes),
            "object_features": request.object_features,
        },
    }


def _rounded(value: Any) -> Any:
    """A metric, a share and its questions, or a table of those, with the decimals of the official script."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def _described_predictions(counts: dict[str, int]) -> str:
    text = f"{counts['predictions']:,} predictions"
    if counts["unanswered"]:
        text += f"; {counts['unanswered']:,} balanced questions without a prediction count as wrong"
    if counts["unknown"]:
        text += f"; {counts['unknown']:,} predictions for other questions are ignored"
    return text
