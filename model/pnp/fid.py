"""Answers by T5 from captions (PNP-VQA, Tiong et al. 2022, step 3): Fusion-in-Decoder (Izacard and Grave 2021).

The encoder reads each context (the question with a few captions) alone; the decoder reads all contexts of its question
at once. T5's cross-attention knows no positions, so the states of a question are put one behind the other without the
padding of its contexts, and questions with different numbers of contexts share a batch.

Shapes: Q questions, X contexts of all questions, L tokens, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from model.precision import t5_dtype
from model.towers.checkpoint_files import T5_ARCHITECTURES
from model.towers.hub import load_pretrained
from model.towers.t5 import forget_generation_settings, greedy

CONTEXTS_PER_BATCH = 320
"""Contexts that the encoder reads at once: those of 16 questions, with PNP-VQA's 20 for each."""


class Answer(NamedTuple):
    """What the reader answers to a question."""

    text: str
    confidence: float
    """The probability of the whole answer: the product of its tokens' probabilities, the end token's included."""


class FidReader:
    """T5 that reads all captions of a question and answers it.

    Args:
        model: T5, best one trained for questions such as UnifiedQA; is frozen and set to evaluation. What its own
            generation settings say of beams and lengths does not apply.
        tokenizer: its own.
    """

    def __init__(self, model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        self._start_id, self._end_id = model.config.decoder_start_token_id, model.config.eos_token_id
        self._pad_id = model.config.pad_token_id
        forget_generation_settings(model)

    def place(self, device: torch.device) -> None:
        """Move the model and give it the precision that T5 can have there (`t5_dtype`), whatever it was cast to."""
        self._model.to(device=device, dtype=t5_dtype(device))

    @torch.no_grad()
    def answer(
        self,
        questions: Sequence[str],
        captions: Sequence[Sequence[str]],
        *,
        captions_per_context: int = 5,
        max_tokens: int = 20,
        max_context_tokens: int = 512,
    ) -> list[Answer]:
        """The most likely answer of each question, token by token.

        Args:
            questions: Q questions.
            captions: what is seen in the image of each.
            captions_per_context: PNP-VQA: 5 for GQA, 1 for VQAv2 and OK-VQA.
            max_tokens: of an answer, with the decoder's start token and the end token.
            max_context_tokens: of a context, with the end token; a question is cut to the half of it, so that captions
                have room, and then the context to the whole.

        Returns:
            Q answers; none depends on the other questions.
        """
        if not questions:
            return []
        texts = [
            contexts(self._cut(question, max_context_tokens // 2), seen, captions_per_context=captions_per_context)
            for question, seen in zip(questions, captions, strict=True)
        ]
        states = self._encode([text for question in texts for text in question], max_context_tokens)
        ends = torch.tensor([len(question) for question in texts]).cumsum(0).tolist()
        read = [torch.cat(states[first:last]) for first, last in zip([0, *ends], ends, strict=False)]
        lengths = torch.tensor([len(tokens) for tokens in read])
        generated = self._model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=pad_sequence(read, batch_first=True)),
            attention_mask=_mask(lengths).to(self._model.device),
            generation_config=greedy(
                start_id=self._start_id,
                end_id=self._end_id,
                pad_id=self._pad_id,
                max_length=max_tokens,
                output_scores=True,
                return_dict_in_generate=True,
            ),
        )
        ids = generated.sequences[:, 1:]
        confidence = self._confidence(ids, torch.stack(generated.scores, dim=1))
        answers = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [Answer(text.strip(), value) for text, value in zip(answers, confidence.tolist(), strict=True)]

    def _cut(self, question: str, max_tokens: int) -> str:
        ids = self._tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"]
        return question if len(ids) <= max_tokens else self._tokenizer.decode(ids[:max_tokens])

    def _encode(self, texts: list[str], max_tokens: int) -> list[Tensor]:
        """Last hidden states (L, D) of each text alone, without padding; texts of like length share a batch."""
        assert all(p.dtype != torch.float16 for p in self._model.parameters()), "T5 overflows in fp16; call place()"
        plain = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [[*tokens[: max_tokens - 1], self._end_id] for tokens in plain]
        by_length = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        states: dict[int, Tensor] = {}
        for first in range(0, len(ids), CONTEXTS_PER_BATCH):
            part = by_length[first : first + CONTEXTS_PER_BATCH]
            rows = [torch.tensor(ids[number]) for number in part]
            lengths = torch.tensor([len(row) for row in rows])
            padded = pad_sequence(rows, batch_first=True, padding_value=self._pad_id)
            device = self._model.device
            hidden = self._model.encoder(input_ids=padded.to(device), attention_mask=_mask(lengths).to(device))
            for number, row, length in zip(part, hidden.last_hidden_state, lengths.tolist(), strict=True):
                states[number] = row[:length]
        return [states[number] for number in range(len(ids))]

    def _confidence(self, ids: Tensor, scores: Tensor) -> Tensor:
        """(Q, T) generated ids and their scores (Q, T, vocabulary) to (Q,); what follows the end token is left out."""
        of_token = scores.float().log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]
        ended = (ids == self._end_id).long()
        behind = (ended.cumsum(dim=1) - ended) > 0
        return of_token.masked_fill(behind, 0.0).sum(dim=1).exp()


def contexts(question: str, captions: Sequence[str], *, captions_per_context: int) -> list[str]:
    r"""What the encoder reads of a question: `question \n caption. caption.` in lower case, with a literal `\n`.

    UnifiedQA was trained to read a backslash and an n between a question and its context.

    Returns:
        One text for each `captions_per_context` captions; the question alone where there is none.
    """
    asked = question.lower().strip()
    groups = [captions[first : first + captions_per_context] for first in range(0, len(captions), captions_per_context)]
    seen = ["".join(f"{caption.strip()}. " for caption in group).lower().strip() for group in groups]
    return [f"{asked} \\n {text}" for text in seen] or [asked]


def load_reader(reference: str) -> FidReader:
    """The reader of a T5 checkpoint, by hub id (`id` or `id@revision`) or local directory, in fp32 on the CPU.

    Raises:
        DataError: it is not there, or damaged.
        ConfigError: it is no T5.
    """
    return FidReader(*load_pretrained(reference, T5_ARCHITECTURES, key="pnp.reader"))


def _mask(lengths: Tensor) -> Tensor:
    """(rows,) to (rows, longest) int64, 1 at tokens."""
    return (torch.arange(int(lengths.max())) < lengths[:, None]).long()
