"""Page retrieval over MP-DocVQA: hit@k over all documents and over long ones; a file of ranked pages."""

import json
from collections.abc import Mapping, Sequence

from model.config import LossConfig
from shards.format.documents import DocumentQuestion
from shards.format.index import SplitIndex
from trainer.scoring.anls import LONG
from trainer.scoring.metrics import Scores, Share
from trainer.scoring.official import add_no_options, score_retrieval
from trainer.scoring.ranking import CELLS, hits
from trainer.scoring.task import ScoreTask
from trainer.tasks.seam import Json, Outputs, Submission, Task, paired


def observe(
    scores: list[Scores],
    questions: Sequence[DocumentQuestion],
    outputs: Outputs,
    detailed: bool = False,  # noqa: ARG001 - there is nothing more to count
) -> dict[str, Json]:
    """Count the rankings of questions whose answer page is known; gives the names of the pages, the best first, by
    question id."""
    by_name, ranked = {cell.name: place for place, cell in enumerate(scores)}, {}
    for question, places in paired(questions, outputs.pages):
        ranked[question.question_id] = [question.pages[place] for place in places]
        if question.answer_page is None:
            continue
        for share in hits(places.index(question.answer_page), len(question.pages)):
            scores[by_name[share.name]] += share
    return ranked


def dump(predictions: Mapping[str, Json]) -> Submission:
    """The names of a question's pages, the best first, by question id: what `data.retrieved` takes."""
    ordered = {name: predictions[name] for name in sorted(predictions)}
    return Submission("json", [(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n").encode()])


def metrics(losses: LossConfig) -> tuple[str, ...]:  # noqa: ARG001 - there is one loss
    """All of them."""
    return CELLS


def measured(index: SplitIndex) -> frozenset[str]:
    """All where answer pages are known, those of long documents where there is one."""
    is_long = f"{LONG} pages and more" in index.types.get("window_type", {})
    cells = [cell for cell in CELLS if is_long or not cell.startswith("long_")]
    return frozenset(cells if index.answers else ())


TASK = Task(
    scores=lambda: [Share(cell) for cell in CELLS],
    observe=observe,
    dump=dump,
    metrics=metrics,
    measured=measured,
    headline=(("hit@1", "hit@1"), ("hit@3", "hit@3"), (f"of {LONG} pages and more", "long_hit@1")),
    official=ScoreTask(add_no_options, score_retrieval),
    recipe="recipes/mpdocvqa_retrieval.yaml",
    files="--questions {split}.json --images images",
)
