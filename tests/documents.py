"""MP-DocVQA's official files, small and written by code: pages with a number on them, and windows that differ."""

import atexit
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.official import Official

PAGE = (40, 52)
"""Width and height in pixels."""
LENGTHS = (1, 3, 12, 2, 5)
"""Pages of the documents, by turns; of twelve, p9 comes before p10."""


def write_mpdocvqa(directory: Path, *, num_samples: int, seed: int, whole: bool = False) -> Official:
    """Documents of one to twelve pages with one to four questions, each with a window of its own; the last question
    without answer and page, as those of the test split are, unless `whole`."""
    data: list[dict[str, Any]] = []
    for number in range(num_samples):
        rng = random.Random(f"mpdocvqa/{seed}/{number}")
        name, length = f"ffbf{number:04d}", LENGTHS[number % len(LENGTHS)]
        for page in range(length):
            _draw_page(directory / "images" / f"{page_name(name, page)}.jpg", number, page)
        for place in range(1 + number % 4):
            start, stop = sorted(rng.sample(range(length + 1), 2))
            if place == 0:
                start, stop = 0, length
            page = rng.randrange(start, stop)
            data.append(
                {
                    "questionId": 1000 + 10 * number + place,
                    "question": f"Which number stands on page {page}?",
                    "doc_id": name,
                    "page_ids": [page_name(name, one) for one in range(start, stop)],
                    "answers": [f"{number}.{page}", f"No. {number}.{page}"],
                    "answer_page_idx": page - start,
                    "data_split": "val",
                }
            )
    if not whole:
        del data[-1]["answers"], data[-1]["answer_page_idx"]
    path = directory / "val.json"
    path.write_text(json.dumps({"dataset_name": "MP-DocVQA", "dataset_split": "val", "data": data}))
    return Official("mpdocvqa", directory / "images", (path,))


def page_name(document: str, page: int) -> str:
    """As official pages are called."""
    return f"{document}_p{page}"


def questions_of(files: Official) -> list[dict[str, Any]]:
    """The entries of the official file."""
    return json.loads(files.questions[0].read_text())["data"]


def words_on(page: str) -> list[str]:
    """What an OCR reads there."""
    return [] if page.endswith("_p1") else ["Page", page, "äöü"]


def box_of(word: int) -> list[float]:
    """Where it stands: left, top, right, bottom."""
    return [0.1 * word, 0.25, 0.1 * word + 1 / 15, 0.3]


def imdb_records(files: Official) -> list[dict[str, Any]]:
    """A record for each question as the framework's files have it, boxes as arrays of numbers."""
    return [
        {
            "question_id": asked["questionId"],
            "question": asked["question"],
            "imdb_doc_pages": len(asked["page_ids"]),
            "image_name": asked["page_ids"],
            "ocr_tokens": [words_on(page) for page in asked["page_ids"]],
            "ocr_normalized_boxes": [
                np.array([box_of(word) for word in range(len(words_on(page)))], dtype=np.float32).reshape(-1, 4)
                for page in asked["page_ids"]
            ],
        }
        for asked in questions_of(files)
    ]


def write_imdb(path: Path, records: list[Any]) -> Path:
    """An IMDB file: the header, then the records."""
    content = np.empty(len(records) + 1, dtype=object)
    content[:] = [{"version": 0.1, "dataset_type": "val"}, *records]
    np.save(path, content, allow_pickle=True)
    return path


@cache
def shared_vlm() -> str:
    """The checkpoint of a small vision-language model, for all tests of a process."""
    from tests.vlm import write_checkpoint  # it imports transformers' families, which documents alone do not need

    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return str(write_checkpoint("qwen2_vl", Path(directory)))


def _draw_page(path: Path, number: int, page: int) -> None:
    picture = Image.new("RGB", PAGE, "white")
    ImageDraw.Draw(picture).text((3, 3), f"{number}.{page}", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
