"""Questions to tokens, as the text tower of a checkpoint was trained to read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from model.retrieval.batch import Texts

_LENGTH_MULTIPLE = 8


class Encoded(NamedTuple):
    """Questions in tokens."""

    texts: Texts
    num_cut: int
    """How many of them were longer than the limit."""


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """A tokenizer, and how its tokens are padded."""

    tokenizer: PreTrainedTokenizerBase
    limit: int
    """The most tokens of a question, special tokens included."""
    context: int
    """Tokens that the tower reads."""
    reads_padding: bool
    """Whether it was trained on texts that padding fills up to the context, and looks at that (SigLIP)."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Questions, cut to the limit with their last special token kept."""
        whole = self.tokenizer(list(texts), verbose=False)["input_ids"]
        kept = self.tokenizer(list(texts), truncation=True, max_length=self.limit)["input_ids"]
        ids = torch.full((len(kept), self._length(max(map(len, kept)))), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(kept):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        num_cut = sum(len(tokens) > self.limit for tokens in whole)
        return Encoded(Texts(ids, None if self.reads_padding else mask), num_cut)

    def _length(self, longest: int) -> int:
        if self.reads_padding:
            return self.context
        return min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, self.context)
