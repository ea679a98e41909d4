"""Operations of text towers: what reads rows of text over image tokens, and what writes answers."""

from collections.abc import Callable, Mapping

from torch import nn

from model.cost.images import bert_layer
from model.cost.tally import Rows, Tally, is_trained
from model.towers.answer_towers import BlipAnswerTower, T5AnswerTower
from model.towers.lxmert import LxmertTower
from model.towers.match_tower import MatchTower

Reads = Callable[[Tally, nn.Module, str, int, bool], bool]
"""(tally, tower, block, N, whether image tokens carry a gradient) to whether its states do."""


def _blip_reads(tally: Tally, tower: nn.Module, block: str, tokens: int, fused: bool) -> bool:
    """Rows packed to words, but for attention, whose rows are padded; keys and values of an image once."""
    words, image = Rows(f"{block}.words"), Rows("images", tokens)
    encoder = tower.text_encoder
    grad = is_trained(encoder.embeddings)
    for layer in encoder.encoder.layer:
        grad = _blip_self(tally, layer, words, Rows(f"{block}.pairs"), grad)
        grad = _blip_cross(tally, layer, words, image, Rows(f"{block}.seen"), grad, fused)
        grad = _blip_forward(tally, layer, words, grad)
    return grad


def _blip_self(tally: Tally, layer: nn.Module, rows: Rows, pairs: Rows, grad: bool) -> bool:
    own = layer.attention.self
    query, key, value = (tally.linear(linear, rows, grad) for linear in (own.query, own.key, own.value))
    mixed = tally.attention(own.all_head_size, pairs, query=query, key=key, value=value)
    return tally.linear(layer.attention.output.dense, rows, mixed) or grad or is_trained(layer.attention.output)


def _blip_cross(
    tally: Tally, layer: nn.Module, rows: Rows, read: Rows, pairs: Rows, grad: bool, read_grad: bool
) -> bool:
    cross = layer.crossattention.self
    query = tally.linear(cross.query, rows, grad)
    key, value = tally.linear(cross.key, read, read_grad), tally.linear(cross.value, read, read_grad)
    mixed = tally.attention(cross.all_head_size, pairs, query=query, key=key, value=value)
    out = layer.crossattention.output
    return tally.linear(out.dense, rows, mixed) or grad or is_trained(out)


def _blip_forward(tally: Tally, layer: nn.Module, rows: Rows, grad: bool) -> bool:
    inner = tally.linear(layer.intermediate.dense, rows, grad)
    return tally.linear(layer.output.dense, rows, inner) or grad or is_trained(layer.output)


def _blip_writes(tally: Tally, tower: nn.Module, block: str, read_grad: bool) -> None:
    rows, read = Rows(f"{block}.written"), Rows(f"{block}.read")
    decoder = tower.text_decoder
    grad = is_trained(decoder.bert.embeddings)
    for layer in decoder.bert.encoder.layer:
        grad = _blip_self(tally, layer, rows, Rows(f"{block}.written_pairs"), grad)
        grad = _blip_cross(tally, layer, rows, read, Rows(f"{block}.read_pairs"), grad, read_grad)
        grad = _blip_forward(tally, layer, rows, grad)
    head = decoder.cls.predictions
    grad = tally.linear(head.transform.dense, rows, grad) or is_trained(head.transform)
    tally.linear(head.decoder, rows, grad)


def _lxmert_reads(tally: Tally, tower: nn.Module, block: str, tokens: int, fused: bool) -> bool:
    """Language layers, then cross layers in which each row has a copy of its image's regions."""
    words, pairs = Rows(f"{block}.places"), Rows(f"{block}.pairs")
    seen, seen_pairs = Rows(f"{block}.rows", tokens), Rows(f"{block}.rows", tokens**2)
    across = Rows(f"{block}.places", tokens)
    grad, regions = is_trained(tower.embeddings), fused
    for layer in tower.encoder.layer:
        grad = bert_layer(tally, layer, words, pairs, grad)
    for layer in tower.encoder.x_layers:
        read = _lxmert_across(tally, layer.visual_attention, words, seen, across, grad, regions)
        if hasattr(layer, "visn_output"):
            looked = _lxmert_across(tally, layer.visual_attention, seen, words, across, regions, grad)
            regions = _lxmert_side(tally, layer, "visn", seen, seen_pairs, looked)
        grad = _lxmert_side(tally, layer, "lang", words, pairs, read)
    tally.linear(tower.pooler.dense, Rows(f"{block}.rows"), grad)
    return grad or is_trained(tower.pooler)


def _lxmert_across(
    tally: Tally, layer: nn.Module, rows: Rows, read: Rows, pairs: Rows, grad: bool, read_grad: bool
) -> bool:
    query = tally.linear(layer.att.query, rows, grad)
    key, value = tally.linear(layer.att.key, read, read_grad), tally.linear(layer.att.value, read, read_grad)
    mixed = tally.attention(layer.att.head_size, pairs, query=query, key=key, value=value)
    return tally.linear(layer.output.dense, rows, mixed) or grad


def _lxmert_side(tally: Tally, layer: nn.Module, side: str, rows: Rows, pairs: Rows, grad: bool) -> bool:
    own = getattr(layer, f"{side}_self_att")
    query, key, value = (tally.linear(linear, rows, grad) for linear in (own.self.query, own.self.key, own.self.value))
    mixed = tally.attention(own.self.head_size, pairs, query=query, key=key, value=value)
    grad = tally.linear(own.output.dense, rows, mixed) or grad
    inner = tally.linear(getattr(layer, f"{side}_inter").dense, rows, grad)
    return tally.linear(getattr(layer, f"{side}_output").dense, rows, inner) or grad


def _t5_reads(tally: Tally, tower: nn.Module, block: str, tokens: int, fused: bool) -> bool:  # noqa: ARG001 - in rows
    """Image tokens stand in front of each row's own, and every layer mixes both."""
    rows, pairs = Rows(f"{block}.mixed"), Rows(f"{block}.mixed_pairs")
    grad = fused or is_trained(tower.model.shared)
    for layer in tower.model.encoder.block:
        grad = _t5_attention(tally, layer.layer[0].SelfAttention, rows, rows, pairs, grad, grad)
        grad = _t5_forward(tally, layer.layer[-1].DenseReluDense, rows, grad)
    return grad


def _t5_writes(tally: Tally, tower: nn.Module, block: str, read_grad: bool) -> None:
    rows, read = Rows(f"{block}.written"), Rows(f"{block}.read_mixed")
    pairs, read_pairs = Rows(f"{block}.written_pairs"), Rows(f"{block}.read_mixed_pairs")
    grad = is_trained(tower.model.shared)
    for layer in tower.model.decoder.block:
        grad = _t5_attention(tally, layer.layer[0].SelfAttention, rows, rows, pairs, grad, grad)
        grad = _t5_attention(tally, layer.layer[1].EncDecAttention, rows, read, read_pairs, grad, read_grad)
        grad = _t5_forward(tally, layer.layer[-1].DenseReluDense, rows, grad)
    tally.linear(tower.model.lm_head, rows, grad)


def _t5_attention(
    tally: Tally, layer: nn.Module, rows: Rows, read: Rows, pairs: Rows, grad: bool, read_grad: bool
) -> bool:
    query = tally.linear(layer.q, rows, grad)
    key, value = tally.linear(layer.k, read, read_grad), tally.linear(layer.v, read, read_grad)
    mixed = tally.attention(layer.inner_dim, pairs, query=query, key=key, value=value)
    return tally.linear(layer.o, rows, mixed) or grad


def _t5_forward(tally: Tally, layer: nn.Module, rows: Rows, grad: bool) -> bool:
    """The feed-forward part; that of T5 1.1 and Flan-T5 is gated."""
    inner = [tally.linear(getattr(layer, name), rows, grad) for name in ("wi", "wi_0", "wi_1") if hasattr(layer, name)]
    return tally.linear(layer.wo, rows, any(inner)) or grad


TEXT_TOWERS: Mapping[type, Reads] = {
    MatchTower: _blip_reads,
    BlipAnswerTower: _blip_reads,
    T5AnswerTower: _t5_reads,
    LxmertTower: _lxmert_reads,
}
ANSWER_TOWERS: Mapping[type, Callable[[Tally, nn.Module, str, bool], None]] = {
    BlipAnswerTower: _blip_writes,
    T5AnswerTower: _t5_writes,
}
