"""Texts to token ids: a deterministic WordPiece vocabulary for untrained models, and the codec of every tower."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, T5Config

from model.towers.checkpoint_files import short_reason
from model.towers.spelling import join_punctuation
from shards.errors import DataError

_KNOWN_TEXTS = 1 << 14
"""Kept of each tokenizer, in each process: about 8 MB."""

_COUNTED_AT_ONCE = 1 << 18

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
"""BLIP's special tokens; [DEC] starts an answer and [SEP] ends it, [ENC] starts what is read with an image."""


def build_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerBase:
    """A lower-case WordPiece tokenizer whose vocabulary depends on nothing but the texts.

    Args:
        texts: the training texts, read once.
        vocab_size: see `tokenizer_of`.
    """
    return tokenizer_of(count_words(texts), vocab_size=vocab_size)


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands there, as BERT splits texts; those of parts of a data set add up to its own.

    Memory: `_COUNTED_AT_ONCE` distinct texts, and the words.
    """
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    counted: Counter[str] = Counter()

    def split() -> None:
        for text, count in counted.items():
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
                words[word] += count
        counted.clear()

    for text in texts:
        counted[text] += 1  # to split a text takes a hundred times as long as to find it again
        if len(counted) >= _COUNTED_AT_ONCE:
            split()
    split()
    return words


def tokenizer_of(words: Mapping[str, int], *, vocab_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer of words by their counts.

    The vocabulary is the special tokens, every character (alone and as a continuation), then the most frequent words,
    ties in alphabetical order. Unlike a trained vocabulary it is the same in every process and library version, and
    no word becomes [UNK].

    Args:
        vocab_size: the number of entries aimed at; characters are never dropped for it.
    """
    characters = sorted({character for word in words for character in word})
    pieces = [*characters, *(f"##{character}" for character in characters)]
    by_frequency = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    room = max(vocab_size - len(SPECIAL_TOKENS) - len(pieces), 0)
    vocabulary = [*SPECIAL_TOKENS, *pieces, *by_frequency[:room]]
    return BertTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        do_lower_case=True,
        bos_token="[DEC]",
        eos_token="[SEP]",
        additional_special_tokens=["[ENC]"],
    )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """A tokenizer that `save_pretrained` wrote.

    Raises:
        DataError: it is not there, or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers each fail in ways of their own
        raise DataError(f"{directory}: no readable tokenizer ({short_reason(error)}); bring its files back") from None


def decode_plain(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids without special tokens, spelled as the tokenizer leaves it, whatever its files ask for."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True, kw_only=True)
class _Codec:
    """What the codecs of all towers have in common."""

    tokenizer: PreTrainedTokenizerBase
    start_id: int
    """The decoder's first input."""
    end_id: int
    pad_id: int
    max_question_tokens: int
    """With special tokens."""
    max_answer_tokens: int
    """With the token that starts or ends it."""

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids[: self.max_answer_tokens - 1] for ids in self._encode(texts)]

    def decode(self, answers: Iterable[Sequence[int]]) -> list[str]:
        """Generated ids as text: what follows the end token and all special tokens are left out."""
        texts = []
        for ids in answers:
            ids = list(ids)
            ids = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
            texts.append(self._spell(decode_plain(self.tokenizer, ids).strip()))
        return texts

    def _spell(self, text: str) -> str:
        """The usual spelling of a decoded text."""
        return text

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        known = _known_ids(self.tokenizer)
        if len(known) > _KNOWN_TEXTS:
            known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            ids = self.tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            known.update(zip(new, ids, strict=True))
        return [known[text] for text in texts]


@lru_cache(maxsize=4)
def _known_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:  # noqa: ARG001 - the cache's key
    """Texts to their ids: a question stands in a micro-batch once to be answered, and once for each answer that it is
    matched with, and answers come again and again."""
    return {}


@dataclass(frozen=True, kw_only=True)
class BlipCodec(_Codec):
    """Texts as BLIP reads them: `[ENC] question [SEP]`, and `[ENC] question [SEP] answer [SEP]` for matching.

    Answers start with [DEC] and end with [SEP].
    """

    first_id: int
    """What the encoders read first: [ENC], or [CLS] in its place."""

    def questions(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        room = self.max_question_tokens - 2
        plain = self._encode(texts)
        return [[self.first_id, *ids[:room], self.end_id] for ids in plain], [len(ids) > room for ids in plain]

    def pairs(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        asked, cut = self.questions(questions)
        return [[*ids, *answer, self.end_id] for ids, answer in zip(asked, self.answers(answers), strict=True)], cut

    def _spell(self, text: str) -> str:
        return join_punctuation(text)  # BERT's splitter sets all punctuation apart; T5's pieces know their blanks


class T5Codec(_Codec):
    """Texts as T5 reads them: `question </s>` in lower case, as UnifiedQA was trained; answers start with the pad."""

    @classmethod
    def of(
        cls, config: T5Config, tokenizer: PreTrainedTokenizerBase, *, max_question_tokens: int, max_answer_tokens: int
    ) -> "T5Codec":
        """The codec of a model."""
        return cls(
            tokenizer=tokenizer,
            start_id=config.decoder_start_token_id,
            end_id=config.eos_token_id,
            pad_id=config.pad_token_id,
            max_question_tokens=max_question_tokens,
            max_answer_tokens=max_answer_tokens,
        )

    def questions(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        room = self.max_question_tokens - 1
        plain = self._encode([text.lower().strip() for text in texts])
        return [[*ids[:room], self.end_id] for ids in plain], [len(ids) > room for ids in plain]
