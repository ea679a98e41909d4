"""The files of each scored task, small, official in form and easy to spoil."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[3] / "golden" / "tasks"
GQA = Path(__file__).parents[3] / "golden" / "gqa_eval"

Score = Callable[..., tuple[int, list[str], str]]
"""Words behind `duoflow score` -> exit code, lines on stdout, stderr."""


class Files:
    """The files of a task that a test can spoil: text as it is, other things as JSON."""

    def __init__(self, directory: Path, task: str, **contents: Any) -> None:
        self.directory, self.task, self.contents = directory, task, contents

    def words(self) -> list[object]:
        """Write everything, and name it."""
        words: list[object] = ["--task", self.task]
        for name, content in self.contents.items():
            path = self.directory / f"{name}.json"
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
            words += [f"--{name}", path]
        return words

    def spoil(self, change: Callable[[Any], object]) -> list[object]:
        change(self.contents)
        return self.words()


def vqa_files(directory: Path) -> Files:
    """The hand-made cases in VQA's format; the official script's question types alternate."""
    cases = {int(key): case for key, case in json.loads((GOLDEN / "vqa.json").read_text())["cases"].items()}
    return Files(
        directory,
        "vqa",
        questions={
            "info": {},
            "task_type": "Open-Ended",
            "questions": [{"question_id": key, "image_id": 7, "question": "What?"} for key in cases],
        },
        annotations={
            "annotations": [
                {
                    "question_id": key,
                    "image_id": 7,
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                        for number, answer in enumerate(case["answers"], start=1)
                    ],
                    "answer_type": case["answer_type"],
                    "question_type": "what is" if key % 2 else "is the",
                    "multiple_choice_answer": case["answers"][0],
                }
                for key, case in cases.items()
            ],
        },
        predictions=[{"question_id": key, "answer": case["prediction"]} for key, case in cases.items()],
    )


def nlvr2_files(directory: Path) -> Files:
    return Files(
        directory,
        "nlvr2",
        questions=(GOLDEN / "nlvr2.jsonl").read_text(),
        predictions=(GOLDEN / "nlvr2.csv").read_text(),
    )


def snli_ve_files(directory: Path) -> Files:
    labels = {"1.jpg#0r1e": "entailment", "1.jpg#0r1n": "neutral", "1.jpg#0r1c": "contradiction"}
    rows = [
        {"Flickr30K_ID": "1", "sentence2": "A man.", "pairID": pair, "gold_label": label}
        for pair, label in labels.items()
    ]
    return Files(
        directory,
        "snli_ve",
        questions="".join(json.dumps(row) + "\n" for row in rows),
        predictions=[{"pairID": pair, "prediction": label} for pair, label in labels.items()],
    )


def mpdocvqa_files(directory: Path) -> Files:
    """The hand-made cases in MP-DocVQA's files, of documents with one to eight pages; every answer names a page."""
    cases = json.loads((GOLDEN / "anls.json").read_text())
    pairs = list(zip(cases["predictions"], cases["answers"], strict=True))
    data = [
        {
            "questionId": number,
            "question": "What?",
            "doc_id": f"d{number}",
            "page_ids": [f"d{number}_p{page}" for page in range(number)],
            "answers": answers,
            "answer_page_idx": number - 1,
            "data_split": "val",
        }
        for number, (_, answers) in enumerate(pairs, start=1)
    ]
    samples = {
        str(number): {"pred_answer": said, "pred_answer_conf": 0.5, "pred_answer_page": number // 2, "anls": 7}
        for number, (said, _) in enumerate(pairs, start=1)
    }
    return Files(
        directory,
        "mpdocvqa",
        questions={"dataset_name": "MP-DocVQA", "data": data},
        predictions={"Model": "T5", "Mean ANLS": 0.1, "Scores by samples": samples},
    )


def retrieval_files(directory: Path) -> Files:
    """The same questions, with their pages in the order of the document, whose last one has the answer."""
    files = mpdocvqa_files(directory)
    rankings = {str(row["questionId"]): list(row["page_ids"]) for row in files.contents["questions"]["data"]}
    return Files(directory, "mpdocvqa_retrieval", questions=files.contents["questions"], predictions=rankings)
