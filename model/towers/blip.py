"""BLIP's towers over `transformers` modules, run grouped: the K questions of an image share one set of keys and values.

The functions here drive the layers of `BlipVisionModel`, `BlipTextModel` and `BlipTextLMHeadModel` themselves and touch
none of their names, so any state dict loads strictly. Two things differ from the modules' own forward, neither in the
result: attention is fused, or done in parts that fit a cache, and keys and values of cross-attention are projected once
per image (65-79 % of the multiplications of a BERT layer that reads 577 image tokens) instead of once per question.

Shapes: B images, N image tokens, R rows of text (questions, or question-answer pairs), L tokens of a row, D width,
H heads.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipTextModel, BlipVisionModel
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextLayer, BlipTextLMHeadModel, BlipTextSelfAttention

from model.checkpointing import run_layer, which_again
from model.rows import Grouping, Words

KeysValues = tuple[Tensor, Tensor]
"""(., H, tokens, D/H) each."""

_CACHED_SCORES = 2**20
"""Attention scores that a core's cache is trusted to hold; in fp32, 4 MiB of them."""


def encode_image(model: BlipVisionModel, pixels: Tensor, *, checkpointing: float = 0.0) -> Tensor:
    """BLIP's ViT (pre-LN, class token first).

    Args:
        pixels: (B, 3, S, S), normalised, S the model's image size.
        checkpointing: part of the layers to compute again in the backward pass.

    Returns:
        (B, N, D) tokens after the final layer norm.
    """
    hidden = model.embeddings(pixels)
    for layer, again in which_again(model.encoder.layers, checkpointing):
        hidden = run_layer(_vision_layer, again, layer, hidden)
    return model.post_layernorm(hidden)


def _vision_layer(layer: nn.Module, hidden: Tensor) -> Tensor:
    attention = layer.self_attn
    qkv = attention.qkv(layer.layer_norm1(hidden))
    query, key, value = (_heads(part, attention.num_heads) for part in qkv.chunk(3, dim=-1))
    if hidden.is_cuda:
        dropout = attention.dropout.p if attention.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    else:
        mixed = _attend_exactly(attention, query, key, value)
    hidden = hidden + attention.projection(_merge_heads(mixed))
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def _attend_exactly(attention: BlipAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with the module's own bits: (B, H, N, D/H) each, and out.

    The last bit of an image token is enough to switch units of DIFNet's ReLU, and its gradient jumps with each. On a
    CPU, as many heads at a time as the cache holds the scores of take at most 1.15 times as long as SDPA; all heads at
    once, as in the module's own forward, take 1.5 times as long at 577 tokens.
    """
    heads_at_once = max(1, _CACHED_SCORES // query.shape[-2] ** 2)
    mixed = []
    for queries, keys, values in zip(
        *(part.flatten(0, 1).split(heads_at_once) for part in (query, key, value)), strict=True
    ):
        scores = torch.matmul(queries, keys.transpose(-1, -2)) * attention.scale
        mixed.append(torch.matmul(attention.dropout(scores.softmax(dim=-1)), values))
    return torch.cat(mixed).view_as(query)


def encode_text(
    model: BlipTextModel,
    ids: Tensor,
    mask: Tensor,
    image_tokens: Tensor,
    grouping: Grouping,
    *,
    num_tokens: int | None = None,
    checkpointing: float = 0.0,
) -> Tensor:
    """BLIP's image-grounded text encoder over rows of text that share images.

    Args:
        ids: (R, L) token ids.
        mask: (R, L) bool, True at tokens.
        image_tokens: (B, N, D).
        grouping: which rows read which image.
        num_tokens: of the mask; None asks the mask, and waits for a GPU.
        checkpointing: part of the layers to compute again in the backward pass, in eval mode too, as frozen towers are.

    Returns:
        (R, L, D) last hidden states, 0 at padding.
    """
    words = Words.of(mask, int(mask.sum()) if num_tokens is None else num_tokens)
    hidden = words.pack(model.embeddings(ids))
    visible = mask[:, None, None, :]
    for layer, again in which_again(model.encoder.layer, checkpointing):
        hidden = run_layer(encode_text_layer, again, layer, hidden, words, visible, image_tokens, grouping)
    return words.unpack(hidden)


def encode_text_layer(
    layer: BlipTextLayer,
    hidden: Tensor,
    words: Words,
    visible: Tensor,
    image_tokens: Tensor,
    grouping: Grouping,
    *,
    observe: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One layer of `encode_text`: (W, D) hidden states to (W, D).

    Args:
        visible: (R, 1, 1, L) bool, the tokens that a row may read of itself.
        observe: is shown the cross-attention probabilities (B, H, rows_per_image * L, N) and gives those to go on
            with; they are made only for it.
    """
    own = layer.attention.self
    query, key, value = (words.unpack(linear(hidden)) for linear in (own.query, own.key, own.value))
    mixed = _mix(
        own, query, (_heads(key, own.num_attention_heads), _heads(value, own.num_attention_heads)), mask=visible
    )
    hidden = layer.attention.output(words.pack(mixed), hidden)
    cross = layer.crossattention.self
    query, keys_values = grouping.pack(words.unpack(cross.query(hidden))), _keys_values(cross, image_tokens)
    mixed = _mix(cross, query, keys_values) if observe is None else _mix_observed(cross, query, keys_values, observe)
    hidden = layer.crossattention.output(words.pack(grouping.unpack(mixed, words.length)), hidden)
    return layer.feed_forward_chunk(hidden)


def decode_text(
    model: BlipTextLMHeadModel,
    ids: Tensor,
    question_states: Tensor,
    question_mask: Tensor,
    *,
    checkpointing: float = 0.0,
) -> Tensor:
    """BLIP's answer decoder with the answer given (teacher forcing).

    Args:
        ids: (R, La) decoder inputs, the start token first.
        question_states: (R, Lq, D) of `encode_text`.
        question_mask: (R, Lq) bool.

    Returns:
        (R, La, vocabulary) logits of the next token.
    """
    hidden = model.bert.embeddings(ids)
    readable = question_mask[:, None, None, :]
    for layer, again in which_again(model.bert.encoder.layer, checkpointing):
        hidden = run_layer(_decoder_layer, again, layer, hidden, question_states, readable)
    return model.cls(hidden)


def decode_candidates(
    model: BlipTextLMHeadModel, ids: Tensor, read: list[KeysValues], readable: Tensor, *, rows_at_once: int = 256
) -> Iterator[tuple[slice, Tensor]]:
    """The answer decoder over candidates that share what they read: keys and values are those of their question.

    Args:
        ids: (R, k, La) decoder inputs of the k candidates of each question.
        read: of each layer, (R, H, M, D/H) each.
        readable: (R, 1, 1, M) bool.
        rows_at_once: about so many candidates are decoded together: of each, La x vocabulary logits are held.

    Yields:
        Some of the candidates, and their logits (R, candidates, La, vocabulary).
    """
    rows, num_candidates = ids.shape[:2]
    step = max(1, rows_at_once // rows)
    for start in range(0, num_candidates, step):
        some = slice(start, min(start + step, num_candidates))
        hidden = model.bert.embeddings(ids[:, some].flatten(0, 1))
        for layer, keys_values in zip(model.bert.encoder.layer, read, strict=True):
            own, cross = layer.attention.self, layer.crossattention.self
            hidden = layer.attention.output(_attend(own, hidden, _keys_values(own, hidden), causal=True), hidden)
            query = cross.query(hidden).view(rows, -1, hidden.shape[-1])
            seen = _mix(cross, query, keys_values, mask=readable).view_as(hidden)
            hidden = layer.feed_forward_chunk(layer.crossattention.output(seen, hidden))
        yield some, model.cls(hidden).unflatten(0, (rows, -1))


def _decoder_layer(layer: BlipTextLayer, hidden: Tensor, question_states: Tensor, readable: Tensor) -> Tensor:
    own, cross = layer.attention.self, layer.crossattention.self
    hidden = layer.attention.output(_attend(own, hidden, _keys_values(own, hidden), causal=True), hidden)
    read = _attend(cross, hidden, _keys_values(cross, question_states), mask=readable)
    return layer.feed_forward_chunk(layer.crossattention.output(read, hidden))


@torch.no_grad()
def generate_greedily(
    model: BlipTextLMHeadModel,
    question_states: Tensor,
    question_mask: Tensor,
    *,
    start_id: int,
    end_id: int,
    pad_id: int,
    max_tokens: int,
    first: Tensor | None = None,
) -> Tensor:
    """The most likely answer, token by token, with keys and values kept between tokens.

    Args:
        first: (R,) the first token of each, in place of the most likely one.

    Unlike `BlipForQuestionAnswering.generate` it does not attend to the padding of a question, so an answer does not
    depend on the other questions of its batch.

    Returns:
        (R, T) token ids without the start token, T <= max_tokens; pad behind the end token.
    """
    readable = question_mask[:, None, None, :]
    read, past = keys_values_read(model, question_states), None
    token = torch.full((len(question_states), 1), start_id, device=question_states.device)
    finished = torch.zeros_like(token, dtype=torch.bool)
    generated = []
    for _ in range(max_tokens):
        logits, past = decode_next(model, token, past, read, readable)
        likely = logits.argmax(dim=-1, keepdim=True) if first is None or generated else first[:, None]
        token = likely.masked_fill(finished, pad_id)
        generated.append(token)
        finished |= token == end_id
        if bool(finished.all()):
            break
    return torch.cat(generated, dim=1)


def keys_values_read(model: BlipTextLMHeadModel, tokens: Tensor) -> list[KeysValues]:
    """What cross-attention of every layer of a decoder reads of tokens (R, M, D): the same for all that is written."""
    return [_keys_values(layer.crossattention.self, tokens) for layer in model.bert.encoder.layer]


def decode_next(
    model: BlipTextLMHeadModel,
    ids: Tensor,
    past: list[KeysValues] | None,
    read: list[KeysValues],
    readable: Tensor | None,
) -> tuple[Tensor, list[KeysValues]]:
    """What may follow a text that is being written, with keys and values of its earlier tokens kept.

    Args:
        ids: (R, L), the whole beginning where there is no past; later (R, 1), the token written last.
        past: what the call before gave.
        read: of each layer, (R, H, M, D/H) each.
        readable: (R, 1, 1, M) bool; None when everything is.

    Returns:
        (R, vocabulary) logits of the next token, and the new past.
    """
    # By positions: the name of the argument that counts the past differs between versions of transformers.
    first = 0 if past is None else past[0][0].shape[2]
    positions = model.bert.embeddings.position_ids[:, first : first + ids.shape[1]]
    hidden = model.bert.embeddings(ids, position_ids=positions)
    kept = []
    for number, layer in enumerate(model.bert.encoder.layer):
        before = None if past is None else past[number]
        hidden, keys_values = _decoder_layer_cached(layer, hidden, before, read[number], readable)
        kept.append(keys_values)
    return model.cls(hidden[:, -1]), kept


def _decoder_layer_cached(
    layer: BlipTextLayer, hidden: Tensor, past: KeysValues | None, read: KeysValues, readable: Tensor | None
) -> tuple[Tensor, KeysValues]:
    own, cross = layer.attention.self, layer.crossattention.self
    key, value = _keys_values(own, hidden)
    if past is not None:
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
    hidden = layer.attention.output(_attend(own, hidden, (key, value), causal=past is None), hidden)
    seen = _attend(cross, hidden, read, mask=readable)
    return layer.feed_forward_chunk(layer.crossattention.output(seen, hidden)), (key, value)


def _attend(
    attention: BlipTextSelfAttention,
    hidden: Tensor,
    keys_values: KeysValues,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    return _mix(attention, attention.query(hidden), keys_values, mask=mask, causal=causal)


def _mix(
    attention: BlipTextSelfAttention,
    query: Tensor,
    keys_values: KeysValues,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    query = _heads(query, attention.num_attention_heads)
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(query, *keys_values, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    return _merge_heads(mixed)


def _mix_observed(
    attention: BlipTextSelfAttention, query: Tensor, keys_values: KeysValues, observe: Callable[[Tensor], Tensor]
) -> Tensor:
    key, value = keys_values
    query = _heads(query, attention.num_attention_heads)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return _merge_heads(attention.dropout(observe(scores.softmax(dim=-1))) @ value)


def _keys_values(attention: BlipTextSelfAttention, tokens: Tensor) -> KeysValues:
    heads = attention.num_attention_heads
    return _heads(attention.key(tokens), heads), _heads(attention.value(tokens), heads)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge_heads(mixed: Tensor) -> Tensor:
    return mixed.transpose(1, 2).flatten(2)
