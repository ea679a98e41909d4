"""Pages ranked for questions about documents: hit@k, and MP-DocVQA's files of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.annotations.json_files import read_list
from shards.annotations.mpdocvqa import QUESTIONS_FORM, AskedRecord, checked_page
from shards.annotations.seam import Advance
from shards.errors import DataError
from trainer.scoring.anls import HITS, LONG
from trainer.scoring.anls_files import read_whole
from trainer.scoring.every_item import refuse_missing
from trainer.scoring.metrics import Share

CELLS = ("accuracy", *(f"hit@{k}" for k in HITS), *(f"long_hit@{k}" for k in HITS))
"""The accuracy is that of pages; hits as reading documents calls them (`trainer.scoring.anls`)."""
RANKINGS_FORM = '{questionId: ["name of the best page", "of the next", ...]}'


class Window(NamedTuple):
    """What is asked of a ranking."""

    pages: tuple[str, ...]
    """Names, in the order of the document."""
    answer_page: int


def hits(rank: int, num_pages: int) -> Iterator[Share]:
    """What one question adds to the cells.

    Args:
        rank: of the page with the answer, from 0.
        num_pages: of the question's window.
    """
    yield Share("accuracy", int(rank < 1), 1)
    for k in HITS:
        yield Share(f"hit@{k}", int(rank < k), 1)
        if num_pages >= LONG:
            yield Share(f"long_hit@{k}", int(rank < k), 1)


def score_rankings(windows: Mapping[str, Window], rankings: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Each cell as a part of 1; those of long windows only where there is one."""
    cells = {name: Share(name) for name in CELLS}
    for name, window in windows.items():
        rank = rankings[name].index(window.pages[window.answer_page])
        for share in hits(rank, len(window.pages)):
            cells[share.name] += share
    return {name: share.correct / share.count for name, share in cells.items() if share.count}


def read_windows(path: Path, advance: Advance) -> dict[str, Window]:
    """The pages of each question, and which of them has the answer: val.json, train.json.

    Raises:
        DataError: the file is broken or of another form, a question is there twice, its answer page is not known or
            not in its window; or there is none.
    """
    windows: dict[str, Window] = {}
    for number, record in enumerate(read_list(path, "data", AskedRecord, QUESTIONS_FORM, advance), start=1):
        where = f"{path}: entry {number} of data: question {record.questionId!r}"
        if record.answer_page_idx is None:
            raise DataError(f"{where}: no answer page; those of the test split are not public")
        if str(record.questionId) in windows:
            raise DataError(f"{where}: is there twice; expected each question once")
        page = checked_page(record, where)
        assert page is not None
        windows[str(record.questionId)] = Window(tuple(record.page_ids), page)
    if not windows:
        raise DataError(f"{path}: no question; expected {QUESTIONS_FORM}")
    return windows


def read_rankings(path: Path, windows: Mapping[str, Window], advance: Advance) -> dict[str, tuple[str, ...]]:
    """The pages of each question, the best first, as a run of task mpdocvqa_retrieval writes them.

    Raises:
        DataError: the file is broken or of another form, an entry is about none of the questions or does not rank each
            page of the window once, or a question has none.
    """
    rankings = read_whole(path, dict[str, tuple[str, ...]], RANKINGS_FORM, advance)
    for name, pages in rankings.items():
        if name not in windows:
            raise DataError(f"{path}: question {name!r} is not among the questions; give the rankings of that split")
        if sorted(pages) != sorted(windows[name].pages):
            raise DataError(
                f"{path}: question {name!r} ranks {', '.join(pages)[:200]}; expected each page of its window once: "
                f"{', '.join(windows[name].pages)[:200]}"
            )
    refuse_missing(path, rankings, windows, "ranking", "questions", "rank their pages too")
    return rankings
