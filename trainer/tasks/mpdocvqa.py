"""MP-DocVQA: accuracy, ANLS, the page of the answer and hit@k; the framework's file of results."""

import json
from collections.abc import Mapping, Sequence

from model.config import LossConfig
from shards.format.documents import DocumentQuestion
from shards.format.index import SplitIndex
from trainer.scoring.anls import ANSWER_CELLS, CELLS, LONG, DocumentAnswer, DocumentScores, Truth
from trainer.scoring.metrics import Scores
from trainer.scoring.official import add_mpdocvqa_options, score_mpdocvqa
from trainer.scoring.task import ScoreTask
from trainer.tasks.seam import Json, Outputs, Submission, Task


def observe(
    scores: list[Scores],
    questions: Sequence[DocumentQuestion],
    outputs: Outputs,
    detailed: bool = False,  # noqa: ARG001 - there is nothing more to count
) -> dict[str, Json]:
    """Count the answers to questions whose own is known; gives by question id what the framework has of a sample."""
    counted: DocumentScores = scores[0]
    number = min(len(questions), max(len(outputs.answers or ()), len(outputs.pages or ())))
    said = {}
    for place, question in enumerate(questions[:number]):
        answer = DocumentAnswer(
            outputs.answers[place] if outputs.answers else "",
            tuple(outputs.pages[place]) if outputs.pages else (),
            is_ranking=True,
        )
        said[question.question_id] = row = {
            "pred_answer": answer.answer,
            "pred_answer_conf": None,
            "pred_answer_page": answer.pages[0] if answer.pages else None,
            **({"pred_answer_pages": list(answer.pages)} if answer.pages else {}),
        }
        if question.answers:
            cells = counted.add(answer, Truth(question.answers, question.answer_page, len(question.pages)))
            row |= {"accuracy": cells.accuracy, "anls": cells.anls, "ret_prec": cells.page_accuracy}
    return said


def dump(predictions: Mapping[str, Json]) -> Submission:
    """The framework's results: the means over the split, and `Scores by samples` by question id. What it says of a
    model and of time is not known here, and null."""
    document = {
        "Model": None,
        "Model_weights": None,
        "Dataset": "MP-DocVQA",
        "Page retrieval": None,
        "Inference time": None,
        **{title: _mean(predictions, name) for title, name in _MEANS.items()},
        "Scores by samples": {name: predictions[name] for name in sorted(predictions, key=_by_number)},
    }
    return Submission("json", [(json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()])


def metrics(losses: LossConfig) -> tuple[str, ...]:
    """Those of answers, and of pages where they are learnt."""
    return CELLS if losses.page > 0 else ANSWER_CELLS


def measured(index: SplitIndex) -> frozenset[str]:
    """Those of the answers, where there are any, and those of long documents, where there is one."""
    is_long = f"{LONG} pages and more" in index.types.get("window_type", {})
    cells = [cell for cell in CELLS if is_long or not cell.startswith("long_")]
    return frozenset(cells if index.answers else ())


_MEANS = {"Mean accuracy": "accuracy", "Mean ANLS": "anls", "Mean Retrieval precision": "ret_prec"}


def _mean(predictions: Mapping[str, Json], name: str) -> float | None:
    values = [row[name] for row in predictions.values() if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def _by_number(name: str) -> tuple[int, str]:
    """Official ids are numbers."""
    return (int(name), "") if name.isdecimal() else (0, name)


TASK = Task(
    scores=lambda: [DocumentScores.empty()],
    observe=observe,
    dump=dump,
    metrics=metrics,
    measured=measured,
    headline=(("ANLS", "anls"), ("accuracy", "accuracy"), ("page", "page_accuracy")),
    official=ScoreTask(add_mpdocvqa_options, score_mpdocvqa),
    recipe="recipes/mpdocvqa_vlm_lora.yaml",
    files="--questions {split}.json --images images",
)
