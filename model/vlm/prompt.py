"""Questions and answers in a processor's own chat template, split behind the images so that a prefix can be shared.

Special tokens split a text before it is tokenised. So what stands behind the last special token of the images can be
tokenised without expanding the images again, and gives the ids of the whole row: `check` compares them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from jinja2 import TemplateError
from transformers import ProcessorMixin

from model.towers.checkpoint_files import short_reason
from shards.errors import ConfigError, DataError

TokenIds = list[int]

_TRIAL = torch.zeros(3, 64, 64, dtype=torch.uint8)
"""An image for trials of a processor."""


class Turn(NamedTuple):
    """A question with its answer."""

    question: str
    answer: str


class Row(NamedTuple):
    """What follows the prefix."""

    ids: TokenIds
    spans: tuple[tuple[int, int], ...]
    """Where each answer begins, and ends behind its end of turn."""


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """How a checkpoint is asked, and how it answers."""

    processor: ProcessorMixin
    end_ids: tuple[int, ...]
    """What ends an answer when the model writes it."""
    system: str | None
    max_question_tokens: int
    max_answer_tokens: int
    source: str
    """What to call the checkpoint in a message."""
    placeholder: str
    """What the template writes where an image stands."""
    anchor: str
    """The text of the last special token of the images and of what follows it in the prefix."""
    special_ids: frozenset[int]
    """What splits a text before it is tokenised."""

    @classmethod
    def of(
        cls,
        processor: ProcessorMixin,
        *,
        end_ids: tuple[int, ...],
        system: str | None,
        max_question_tokens: int,
        max_answer_tokens: int,
        source: str,
    ) -> Self:
        """What a processor's template, tokenizer and special tokens come to.

        Raises:
            ConfigError: the template has no place for an image, or the tokens of a prefix and of a question apart are
                not those of the whole row.
        """
        tokenizer = processor.tokenizer
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        plain = cls(
            processor=processor,
            end_ids=end_ids,
            system=system,
            max_question_tokens=max_question_tokens,
            max_answer_tokens=max_answer_tokens,
            source=source,
            placeholder="",
            anchor="",
            special_ids=frozenset({*tokenizer.all_special_ids, *added, *end_ids}),
        )
        try:
            marked = replace(plain, placeholder=plain._find_placeholder())
            (ids,) = row_ids(marked.encode([marked.prefix(1)], [[_TRIAL]]))
            behind = ids[len(marked.shared(ids)) - 1 :]
            made = replace(marked, anchor=tokenizer.decode(behind, skip_special_tokens=False))
            made._check()
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            tried = "a question with an image" + ("" if system is None else " behind vlm.system")
            reason = f"{type(error).__name__}: {short_reason(error)}"
            raise ConfigError(f"model.vlm: {source}: its processor cannot make {tried}: {reason}") from None
        return made

    @property
    def tokenizer(self) -> Any:
        """Of the processor."""
        return self.processor.tokenizer

    def prefix(self, num_images: int) -> str:
        """All that stands in front of a question, with the placeholder of its last image at the end."""
        text = self._render(num_images, [Turn("?", "")], open_end=True)
        return text[: text.rindex(self.placeholder) + len(self.placeholder)]

    def prompt(self, num_images: int, question: str) -> TokenIds:
        """What follows the prefix up to where the answer begins."""
        return self._behind(self._render(num_images, [Turn(question, "")], open_end=True))

    def row(self, num_images: int, turns: Sequence[Turn]) -> Row:
        """Questions with their answers behind the prefix, one after the other, up to the last end of turn."""
        ids = self._behind(self._render(num_images, turns, open_end=False))
        spans = []
        for number in range(len(turns)):
            asked = [*turns[:number], Turn(turns[number].question, "")]
            start = _common(self._behind(self._render(num_images, asked, open_end=True)), ids)
            specials = [place for place in range(start, len(ids)) if ids[place] in self.special_ids]
            if not specials:
                ids = [*ids, self.end_ids[0]]  # a template that says nothing of where an answer ends
            spans.append((start, specials[0] + 1 if specials else len(ids)))
        return Row(ids[: spans[-1][1]], tuple(spans))

    def cut(self, text: str, limit: int) -> tuple[str, bool]:
        """A text of at most so many tokens, and whether it had to be cut.

        Raises:
            DataError: the text has a special token in it, which would be read as one.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.special_ids.intersection(ids):
            raise DataError(f"{text[:80]!r}: holds a special token of {self.source}; take it out of the text")
        if len(ids) <= limit:
            return text, False
        return self.tokenizer.decode(ids[:limit], skip_special_tokens=True).strip(), True

    def answers(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each answer, cut so that the end of turn still fits."""
        kept = [self.cut(text, self.max_answer_tokens - 1)[0] for text in texts]
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in kept]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Answers up to their ends, without special tokens."""
        return [self.tokenizer.decode(self._until_end(row), skip_special_tokens=True).strip() for row in ids]

    def encode(self, texts: Sequence[str], images: Sequence[Sequence[torch.Tensor]]) -> dict[str, Any]:
        """What the processor makes of texts with their images, padded."""
        nested = [[image.permute(1, 2, 0).numpy() for image in shown] for shown in images]
        bos = self.tokenizer.bos_token
        doubled = bos is not None and all(text.startswith(bos) for text in texts)
        return dict(
            self.processor(
                images=nested,
                text=list(texts),
                padding=True,
                return_tensors="pt",
                add_special_tokens=not doubled,
                input_data_format="channels_last",
            )
        )

    def shared(self, ids: TokenIds) -> TokenIds:
        """The ids of a prefix up to its last special token: what follows it may merge with a question."""
        last = max(place for place, token in enumerate(ids) if token in self.special_ids)
        return ids[: last + 1]

    def images_of(self, ids: TokenIds, images: Sequence[torch.Tensor]) -> list[int]:
        """For each token of a prefix the number of the image that it is part of; -1 where it is none's.

        Args:
            images: (3, H, W) each, in the order in which they stand there.

        Raises:
            DataError: the processor gives images together other tokens than each alone, and not all the same number.
        """
        at = [place for place, token in enumerate(ids) if token == self._image_id]
        counts = [self._tokens_of(*image.shape[1:]) for image in images]
        if sum(counts) != len(at):  # such as LLaVA-OneVision's, which shows one image finer than several
            each, rest = divmod(len(at), len(images))
            if rest:
                raise DataError(
                    f"{len(images)} images have {len(at):,} tokens of {self.source} together and {sum(counts):,} "
                    "apart, so that nothing says whose they are; set losses.page to 0"
                )
            counts = [each] * len(images)
        found = [-1] * len(ids)
        for place, number in zip(at, (n for n, count in enumerate(counts) for _ in range(count)), strict=True):
            found[place] = number
        return found

    def _tokens_of(self, height: int, width: int) -> int:
        """How many tokens an image of this size has by itself."""
        if (height, width) not in self._counts:
            blank = torch.zeros(3, height, width, dtype=torch.uint8)
            (ids,) = row_ids(self.encode([self.prefix(1)], [[blank]]))
            self._counts[height, width] = ids.count(self._image_id)
        return self._counts[height, width]

    @property
    def _image_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.processor.image_token)

    @cached_property
    def _counts(self) -> dict[tuple[int, int], int]:
        return {}

    def _find_placeholder(self) -> str:
        text = self._render(1, [Turn("?", "")], open_end=True)
        known = [getattr(self.processor, name, None) for name in ("image_token", "boi_token")]
        found = [token for token in known if token and token in text]
        if not found:
            raise ConfigError(f"model.vlm: {self.source}: its chat template has no place for an image")
        return found[0]

    def _check(self) -> None:
        for images, turn in (([_TRIAL], Turn("What is it?", "yes")), ([_TRIAL] * 2, Turn("Is it red", "no, 12"))):
            count = len(images)
            (expected,) = row_ids(self.encode([self._render(count, [turn], open_end=False)], [images]))
            (prefix,) = row_ids(self.encode([self.prefix(count)], [images]))
            made = [*self.shared(prefix), *self.row(count, [turn]).ids]
            if made != expected[: len(made)] and made[:-1] != expected:
                place = _common(made, expected)
                raise ConfigError(
                    f"model.vlm: {self.source}: its processor gives other tokens for a whole row than for prefix and "
                    f"question apart (from token {place}: {expected[place : place + 3]}, apart "
                    f"{made[place : place + 3]}); this template cannot be trained here"
                )

    def _behind(self, text: str) -> TokenIds:
        """The ids behind the shared prefix: those of the text behind its last image, after what splits it."""
        suffix = text[text.rindex(self.placeholder) + len(self.placeholder) :]
        return self.tokenizer(self.anchor + suffix, add_special_tokens=False)["input_ids"][1:]

    def _render(self, num_images: int, turns: Sequence[Turn], *, open_end: bool) -> str:
        """The conversation as the template writes it; with an open end, up to where the last answer begins."""
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": [_text(self.system)]})
        for number, turn in enumerate(turns):
            images = [{"type": "image"}] * num_images if number == 0 else []
            messages.append({"role": "user", "content": [*images, _text(turn.question)]})
            if not (open_end and number == len(turns) - 1):
                messages.append({"role": "assistant", "content": [_text(turn.answer)]})
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_end)

    def _until_end(self, ids: Sequence[int]) -> list[int]:
        ends = [place for place, token in enumerate(ids) if token in self.end_ids]
        return list(ids[: ends[0]] if ends else ids)


def row_ids(encoded: dict[str, Any]) -> list[TokenIds]:
    """The token ids of each row of what a processor gives, padding left out."""
    pairs = zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _common(one: TokenIds, other: TokenIds) -> int:
    """How many tokens two rows begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
