"""A head over answers that was trained before, row by row for the answers of another list.

LXMERT's `--loadLXMERTQA`: the layers below are taken as they are, and of the last one the rows of answers that are
called alike. Source: `AnswerTable.convert_ans` and `load_lxmert_qa` of src/pretrain/qa_answer_table.py
(airsplay/lxmert).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from model.towers.checkpoint_files import LXMERT_ARCHITECTURES
from model.towers.hub import load_pretrained
from shards.errors import ConfigError

_DIGITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_CALLED = {"grey": "gray", **{word: str(number) for number, word in enumerate(_DIGITS, start=1)}}
_ARTICLES = ("a ", "an ", "the ")
_PREFIX = "answer_head.logit_fc."
_LAST = "3."
"""The layer with a row for each answer."""


class AnswerHead(NamedTuple):
    """A trained head: `Linear, GELU, LayerNorm, Linear`."""

    state: Mapping[str, Tensor]
    """By the names of an nn.Sequential of those four."""
    answers: tuple[str, ...]
    """What the rows of its last layer stand for."""


class _Named(msgspec.Struct):
    ans: str


def called(answer: str) -> str:
    """What an answer is called in LXMERT's list: lower case, without a final full stop and leading articles, one to ten
    as digits, and gray.

    Articles go one after the other, a before an before the, each once: "the a b" keeps its a.
    """
    answer = answer.lower()
    if answer.endswith("."):
        answer = answer[:-1].strip()
    for article in _ARTICLES:
        if answer.startswith(article):
            answer = answer.removeprefix(article).strip()
    return _CALLED.get(answer, answer)


def read_answer_list(path: Path, key: str) -> tuple[str, ...]:
    """The answers of a JSON list of texts, or of `{"ans": text}` as in LXMERT's all_ans.json.

    Raises:
        ConfigError: it cannot be read, or is no such list.
    """
    try:
        found = msgspec.json.decode(path.expanduser().read_bytes(), type=list[str | _Named])
    except OSError as error:
        raise ConfigError(f"{key}: {path}: cannot be read: {error.strerror}; name a JSON list of answers") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f'{key}: {path}: {error}; expected a JSON list of answers, or of {{"ans": answer}}') from None
    return tuple(one if isinstance(one, str) else one.ans for one in found)


def load_answer_head(reference: str, answers: tuple[str, ...] | None) -> AnswerHead:
    """The head of an LXMERT that was trained to answer questions.

    Args:
        answers: of its rows; None takes those that its config.json names.

    Raises:
        ConfigError, DataError: the checkpoint is missing or damaged, has no such head, or its answers are not known.
    """
    model = load_pretrained(reference, LXMERT_ARCHITECTURES, key="answers.start_from", answer_head=True).model
    state = {
        name.removeprefix(_PREFIX): value for name, value in model.state_dict().items() if name.startswith(_PREFIX)
    }
    rows = len(state[f"{_LAST}bias"])
    if answers is None:
        labels = model.config.id2label
        answers = tuple(labels[number] for number in sorted(labels))
        if all(name == f"LABEL_{number}" for number, name in enumerate(answers)):
            raise ConfigError(
                f"answers.start_list: is not set, and config.json of {reference} names no answers; name the list that "
                "its head was trained with, such as LXMERT's data/lxmert/all_ans.json"
            )
    if len(answers) != rows:
        raise ConfigError(
            f"answers.start_list: {len(answers):,} answers, but the head of {reference} has {rows:,}; name the list "
            "that it was trained with"
        )
    return AnswerHead(state, answers)


def _rows_of(classes: Sequence[str], answers: Sequence[str]) -> list[int | None]:
    """Where each class stands among the answers of a head: as it is written, or else as LXMERT would call both."""
    exact, alike = {}, {}
    for row, answer in enumerate(answers):
        exact.setdefault(answer, row)
        alike.setdefault(called(answer), row)
    return [exact[name] if name in exact else alike.get(called(name)) for name in classes]


@torch.no_grad()
def start_from(layers: nn.Sequential, classes: Sequence[str], head: AnswerHead) -> int:
    """Give a head over classes the weights of another; says how many classes were found among its answers.

    Raises:
        ConfigError: the layers below are of other widths.
    """
    own = layers.state_dict()
    below = {name: value for name, value in head.state.items() if not name.startswith(_LAST)}
    differing = [name for name, value in below.items() if name not in own or own[name].shape != value.shape]
    if differing:
        raise ConfigError(
            f"answers.start_from: its head is of another form or width ({', '.join(differing)}); name a checkpoint of "
            "the size of model.match, and model.head=lxmert"
        )
    for name, value in below.items():
        own[name].copy_(value)
    rows = _rows_of(classes, head.answers)
    for name in ("weight", "bias"):
        target, source = own[f"{_LAST}{name}"], head.state[f"{_LAST}{name}"]
        target.zero_()  # answers that it does not know
        for place, row in enumerate(rows):
            if row is not None:
                target[place] = source[row]
    return sum(row is not None for row in rows)
