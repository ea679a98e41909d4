"""GQA, and whatever has an image, a question and an answer: questions to answer, and answers to match."""

from collections.abc import Sequence

from shards.format.records import Question
from shards.tasks.negatives import answer_draws, answer_negative, question_draws, question_negative
from shards.tasks.seam import Block, Draw, Row, Rows, Target, TaskData, Visit, Wanted


def rows(visit: Visit, draw: Draw, wanted: Wanted) -> Rows:
    """`ask`: every question, with its answer. `match`: its answer, and a negative of each kind that is asked for.

    The positive of a question and its negatives together weigh 1/2 each; a negative that the data does not offer is
    left out, and the others keep their weight.
    """
    questions: Sequence[Question] = visit.items
    made: dict[str, list[Row]] = {}
    missing = 0
    if "ask" in wanted.blocks:
        made["ask"] = [
            Row(question.question, item, targets=(Target(question.answer or "", float(question.answer is not None)),))
            for item, question in enumerate(questions)
        ]
    if "match" in wanted.blocks:
        made["match"] = matches = []
        # All at once: to hash a few numbers takes as long as to hash one.
        draws = zip(answer_draws(draw.epoch, visit.numbers), question_draws(draw.epoch, visit.numbers), strict=True)
        for item, (question, drawn) in enumerate(zip(questions, draws, strict=True)):
            negatives = _negatives(question, visit.sample, drawn, draw, wanted.negatives)
            missing += len(wanted.negatives) - len(negatives)
            if question.answer is None:
                continue
            weight = 0.5 / max(len(wanted.negatives), 1)
            matches.append(Row(question.question, item, pair=question.answer, weight=0.5, label=1))
            matches += [Row(text, item, pair=answer, weight=weight) for text, answer in negatives]
    return Rows(made, missing)


def _negatives(
    question: Question, image: int, drawn: tuple[int, list[int]], draw: Draw, kinds: tuple[str, ...]
) -> list[tuple[str, str]]:
    chosen: list[tuple[str, str]] = []
    for_answer, for_question = drawn
    if "answer" in kinds:
        wrong = answer_negative(question, draw.index.groups, draw.index.answers, for_answer)
        if wrong is not None:
            chosen.append((question.question, wrong))
    if "question" in kinds and question.answer is not None:
        other = question_negative(image, for_question, draw.epoch, draw.samples)
        if other is not None:
            chosen.append((other.question, other.answer))
    return chosen


DATA = TaskData(
    formats=("gqa", "jsonl", "csv"),
    blocks={"ask": Block(tower="answer"), "match": Block(tower="match", paired=True, labels="rows")},
    reads={"itm": "match", "answer": "ask"},
    losses={"itm": 1.0, "answer": 1.0},
    rows=rows,
)
