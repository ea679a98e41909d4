"""The `report` verb: a run as one HTML file that needs nothing else."""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import check_writable, write_atomically
from shards.errors import UserError
from shards.progress import say
from trainer.export.run_arguments import check_run
from trainer.run_directory import RunDirectory

if TYPE_CHECKING:
    from trainer.config import RunConfig
    from trainer.inference.table import Predicted

SAMPLES, WORST, DRAWN = 6, 30, 6
"""Answers that are drawn, wrong answers in the table, and those of them that are drawn."""
_CURVES = ("train/loss", "optim/lr", "speed/questions_per_second")
_VALIDATION = ("loss", "accuracy")


def add_report_parser(verbs: Any) -> None:
    """Add `report`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "report",
        description="Write one HTML file about a run: curves, scores of the best validation, answers with what was "
        "looked at, the wrong answers that the model is surest of, recipe and environment. It loads nothing from "
        "elsewhere. Answers come from the table that `duoflow evaluate` writes.",
        epilog="duoflow report runs/my_run --out report.html",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's directory, such as runs/NAME, or an export")
    parser.add_argument("--out", required=True, metavar="F.html", type=Path, help="the file to write")
    parser.add_argument("--split", default="val", help="whose answers are shown")
    parser.set_defaults(handler=_report)


def _report(arguments: argparse.Namespace) -> int:
    check_run(arguments.run)
    check_writable("--out", arguments.out)
    run = RunDirectory(arguments.run)

    from trainer.reporting.html import page  # after the run was found

    sections = list(_sections(run, arguments.split))
    write_atomically(arguments.out, page(run.path.resolve().name, sections).encode("utf-8", "replace"))
    say(f"written: {arguments.out}")
    return 0


def _sections(run: RunDirectory, split: str) -> Iterator[tuple[str, str]]:
    from html import escape

    from trainer.commands.status import metrics_lines
    from trainer.config import dump_config
    from trainer.reporting.html import curves, table

    config, lines = run.read_config(), list(metrics_lines(run))
    assert config is not None, "checked with the run"
    if shown := curves(_series(lines)):
        yield "Curves", shown
    if scores := _best_scores(config, lines):
        yield "Best validation", table(("metric", "value"), [(name, f"{value:.4f}") for name, value in scores.items()])
    yield from _answers(run, config, split)
    yield "Recipe", f"<pre>{escape(dump_config(config))}</pre>"
    if run.environment.is_file():
        yield "Environment", f"<pre>{escape(run.environment.read_text(encoding='utf-8'))}</pre>"


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Curves by name; of validations the whole split's losses and accuracies."""
    names = [*_CURVES, *(name for name in _names(lines) if name not in _CURVES and _is_whole(name))]
    return {
        name: [(line["step"], line[name]) for line in lines if _finite(line.get(name)) and _finite(line.get("step"))]
        for name in names
    }


def _best_scores(config: "RunConfig", lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every metric of the best validation: accuracies by type among them."""
    from trainer.commands.status import best

    found = best(config, lines)
    at_best = {} if found is None else next(one for one in lines if one.get(found.metric) == found.value)
    return {name: value for name, value in at_best.items() if name.startswith("val/") and _finite(value)}


def _answers(run: RunDirectory, config: "RunConfig", split: str) -> Iterator[tuple[str, str]]:
    from html import escape

    from trainer.inference.table import read_predicted
    from trainer.reporting.html import table

    file = run.predictions_table(split)
    if not file.is_file():
        todo = f"duoflow evaluate {run.path} --split {split}"
        yield "Answers", f"<p>None yet: <code>{escape(todo)}</code> writes them, and this report shows them.</p>"
        return
    rows = read_predicted(file)
    wrong = worst_errors(rows)
    chosen = rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]
    drawn = _drawn(run, config, split, [*chosen, *wrong[:DRAWN]])
    yield f"Answers of {split}", drawn(chosen)
    header = ("image", "question", "answer", "prediction", "probability")
    cells = [(one.image, one.question, one.answer or "", one.prediction, _percent(one)) for one in wrong]
    yield "Wrong answers, the surest first", table(header, cells) + drawn(wrong[:DRAWN])


def worst_errors(rows: Sequence["Predicted"]) -> list["Predicted"]:
    """The wrong answers, the surest first; those without a probability last."""
    wrong = [one for one in rows if one.correct is not None and one.correct < 0.5]
    return sorted(wrong, key=lambda one: -1.0 if one.probability is None else one.probability, reverse=True)[:WORST]


def _drawn(run: RunDirectory, config: "RunConfig", split: str, rows: Sequence["Predicted"]) -> Any:
    """rows -> figures with overlays, where the model looks; else as a table."""
    from trainer.build import open_split
    from trainer.inference.serve import load_asking, overlay_of
    from trainer.reporting.html import figure, table

    pictures: dict[str, str] = {}
    try:
        asking, opened = load_asking(run.path), open_split(config, split)
        wanted = {one.item_id: one for one in rows}
        for number in range(opened.index.num_images):
            if len(pictures) == len(wanted):
                break
            for item in opened.reader.sample(number).items:
                if item.item_id in wanted:
                    one = wanted[item.item_id]
                    data = opened.reader.images(number)[0]
                    pictures[item.item_id] = overlay_of(asking, data, one.question, one.prediction, one.probability)
        missing = ""
    except UserError as error:  # no shards here, or a model that does not look: the answers are told in words
        missing = str(error)

    def figures(some: Sequence["Predicted"]) -> str:
        shown = [
            figure(pictures[one.item_id], f"right answer: {one.answer}") for one in some if one.item_id in pictures
        ]
        words = [(one.question, one.answer or "", one.prediction) for one in some if one.item_id not in pictures]
        told = table(("question", "answer", "prediction"), words) if words else ""
        return "".join(shown) + told + (table(("without pictures",), [(missing,)]) if missing else "")

    return figures


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line))


def _is_whole(name: str) -> bool:
    return name.startswith("val/") and name.count("/") == 1 and name.endswith(_VALIDATION)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _percent(one: "Predicted") -> str:
    return "" if one.probability is None else f"{one.probability:.1%}"
