"""Answers written greedily: the questions of an image side by side over one prefix, or row by row.

Shapes as in `model.vlm.batch`; K questions of a sequence at most, T tokens of an answer.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from model.vlm.batch import PADDING, PREFIX, Asked, Sequences
from model.vlm.forward import Forward
from model.vlm.sharing import positions as counted


class Written(NamedTuple):
    """What a model answered, in the order of the items."""

    ids: Tensor
    """(I, T) int64, filled up behind the end of an answer with its end"""
    probability: Tensor
    """(I,) float32: of each whole answer, its end included"""


def write_grouped(forward: Forward, asked: Asked, *, max_tokens: int, end_ids: tuple[int, ...]) -> Written:
    """Keys and values of images and questions are computed once; then every question goes on in its own place.

    A step computes a token of each question: (S, K) of them, over one store of prefix, questions and what was written,
    which is never copied.
    """
    sequences, device = asked.sequences, asked.at.device
    count, length = sequences.ids.shape
    store = DynamicCache()
    states = forward.states(sequences, store).flatten(0, 1)[asked.at]
    sequence, number = asked.at // length, sequences.segment.flatten()[asked.at]
    slots = int(number.max())
    cell = sequence * slots + number - 1  # of each item among (S, K)
    position = forward.positions(sequences).flatten(-2)[..., asked.at]
    ends = torch.tensor(end_ids, device=device)
    token, log_probability = _most_likely(forward.logits(states))
    ids, total, ended = [token], log_probability, torch.isin(token, ends)
    segment = sequences.segment
    own = torch.arange(1, slots + 1, device=device)
    stored, stored_at = segment, counted(segment, sequences.place)  # of every key
    behind = stored_at.flatten()[asked.at]
    while len(ids) < max_tokens and not bool(ended.all()):
        position, behind = position + 1, behind + 1
        now = _into(cell, behind, (count, slots))
        stored = torch.cat([stored, own.expand(count, slots)], dim=1)
        seen = (stored[:, None, :] == own[:, None]) | (stored == PREFIX)[:, None, :]
        stored_at = torch.cat([stored_at, now], dim=1)
        distance = now[:, :, None] - stored_at[:, None, :]
        given = (_into(cell, ids[-1], (count, slots)), _into(cell, position, (count, slots)), seen, distance)
        found = forward.go_on(*given, store).flatten(0, 1)[cell]
        token, log_probability = _most_likely(forward.logits(found))
        token = torch.where(ended, ids[-1], token)  # it is an end already
        total = total + log_probability.masked_fill(ended, 0.0)
        ids.append(token)
        ended = ended | torch.isin(token, ends)
    return Written(torch.stack(ids, dim=1), total.exp())


def write_alone(forward: Forward, asked: Asked, *, max_tokens: int, end_ids: tuple[int, ...]) -> Written:
    """Every question with images of its own, by the `generate` of transformers."""
    sequences = asked.sequences
    left, mask, kinds = _padded_in_front(sequences)
    plain = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_tokens,
        eos_token_id=list(end_ids),
        pad_token_id=end_ids[0],
        return_dict_in_generate=True,
        output_scores=True,
    )
    dtype = forward.model.dtype
    media = {name: v.to(dtype) if v.is_floating_point() else v for name, v in sequences.media.items()}
    made = forward.model.generate(input_ids=left, attention_mask=mask, generation_config=plain, **media, **kinds)
    ids = made.sequences[:, left.shape[1] :]
    ends = torch.tensor(end_ids, device=ids.device)
    is_end = torch.isin(ids, ends).long()
    counted = is_end.cumsum(dim=1) - is_end == 0
    scores = torch.stack([score.float().log_softmax(dim=-1) for score in made.scores], dim=1)
    chosen = scores.gather(2, ids[..., None])[..., 0]
    return Written(ids, chosen.masked_fill(~counted, 0.0).sum(dim=1).exp())


def _most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(I, V) to (I,) tokens and (I,) their log-probabilities."""
    token = logits.argmax(dim=-1)
    return token, logits.log_softmax(dim=-1).gather(1, token[:, None])[:, 0]


def _into(cell: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    """(..., I) to (..., S, K), 0 where a sequence has fewer questions."""
    laid_out = value.new_zeros(*value.shape[:-1], shape[0] * shape[1])
    laid_out[..., cell] = value
    return laid_out.unflatten(-1, shape)


def _padded_in_front(sequences: Sequences) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Ids, mask and kinds with the padding in front, where `generate` wants it."""
    mask = sequences.segment != PADDING
    order = mask.long().argsort(dim=1, stable=True)
    kinds = {name: value.gather(1, order) for name, value in sequences.kinds.items()}
    return sequences.ids.gather(1, order), mask.gather(1, order).long(), kinds
