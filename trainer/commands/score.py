"""`duoflow score`: arguments in, GQA's official scores out, as lines and as JSON."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.atomic import check_writable
from shards.progress import say
from trainer.scoring.gqa.predictions import NORMALIZATIONS
from trainer.scoring.gqa.score_files import FIXES, ScoreReport, ScoreRequest, score_files

TITLES = {
    "structural": "Accuracy / structural type",
    "semantic": "Accuracy / semantic type",
    "steps": "Accuracy / steps number",
    "length": "Accuracy / words number",
}
"""Of the breakdowns, in the words of the official script."""

OFFICIAL_NAMES = {
    "structural": "accuracyPerStructuralType",
    "semantic": "accuracyPerSemanticType",
    "steps": "accuracyPerSteps",
    "length": "accuracyPerLength",
}


def add_score_parser(verbs: Any) -> None:
    """Add `score` to a command's verbs; its `handler` takes the parsed arguments, returns the exit code and raises
    UserError."""
    parser = verbs.add_parser(
        "score",
        help="GQA's official scores of a file of predictions",
        description="Score predictions as GQA's official script does: accuracy, consistency, validity, plausibility, "
        "grounding and distribution, and accuracies by kind, steps and length of the questions. See docs/scores.md.",
    )
    add = parser.add_argument
    add("--questions", metavar="F", type=Path, nargs="+", required=True, help="question files, or a directory of them")
    add("--predictions", metavar="F", type=Path, required=True, help='[{"questionId": ..., "prediction": ...}, ...]')
    add("--choices", metavar="F", type=Path, help="GQA's choices: gives validity and plausibility")
    add("--scene-graphs", metavar="F", type=Path, help="GQA's scene graphs: gives grounding, with --attentions")
    add("--attentions", metavar="F", type=Path, help='[{"questionId": ..., "attention": [[...], ...]}, ...]')
    add("--object-features", action="store_true", help="attentions are boxes [x0, y0, x1, y1, attention], not maps")
    add("--consistency", action="store_true", help="fail where it cannot be had, instead of leaving it out")
    add(
        "--train-questions",
        metavar="F",
        type=Path,
        nargs="+",
        default=[],
        help="show what training's answers can reach",
    )
    add("--train-shards", metavar="DIR", type=Path, help="the same, from shards of the training split")
    add("--missing", choices=("fail", "wrong"), default="fail", help="wrong: no prediction is a wrong one")
    add(
        "--unknown",
        choices=("fail", "ignore"),
        default="fail",
        help="ignore: predictions for other questions may be there",
    )
    add(
        "--normalize",
        choices=tuple(NORMALIZATIONS),
        nargs="+",
        action="extend",
        default=[],
        help="change predictions before comparing",
    )
    add(
        "--fix",
        choices=FIXES,
        nargs="+",
        action="extend",
        default=[],
        help="depart from the official script's grounding",
    )
    add("--json", metavar="F", type=Path, help="write the scores to this file as well")
    parser.set_defaults(handler=run_score)


def run_score(arguments: argparse.Namespace) -> int:
    """Score, print and, if asked, write."""
    from trainer.run_directory import write_json  # it reads recipes too, which takes a while to import

    if arguments.json is not None:
        check_writable("--json", arguments.json)
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
    for line in report_lines(report):
        say(line)
    if arguments.json is not None:
        write_json(arguments.json, report_document(request, report))
    return 0


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


def _described_predictions(counts: dict[str, int]) -> str:
    text = f"{counts['predictions']:,} predictions"
    if counts["unanswered"]:
        text += f"; {counts['unanswered']:,} balanced questions without a prediction count as wrong"
    if counts["unknown"]:
        text += f"; {counts['unknown']:,} predictions for other questions are ignored"
    return text
