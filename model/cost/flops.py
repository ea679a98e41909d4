"""Operations of a training step over fused images in closed form: what a part of the machine's peak is computed from.

The sum of matrix products layer by layer, as linear coefficients of a batch's own numbers (images, words, pairs of
words that attend to each other), worked out once; a step then costs a few multiplications to count.

Shapes: B images, N image tokens, R rows of text, L tokens of a row, W tokens in all, T targets, La their tokens.
"""

from torch import nn

from model.cost.images import sight_flops, stream_flops
from model.cost.tally import Rows, Tally, is_trained
from model.cost.texts import ANSWER_TOWERS, TEXT_TOWERS
from model.fusion.concatenation import ConcatenationEncoder
from model.fusion.difnet import DifnetEncoder, FusionLayer
from model.fusion_objective import FusionObjective
from model.parts.classify import ClassPart
from model.parts.itm import MatchingPart
from model.parts.seam import Part
from model.towers.vision import VisionTower
from shards.read.collate import Batch, SeenFeatures, SeenRegions


class StepFlops:
    """Operations of forward and backward of a micro-batch; of an objective that `no_closed_form` has nothing against.

    Coefficients are worked out anew where images come with another number of tokens, as regions may, or with tokens of
    other streams from a cache, whose encoders then compute nothing.
    """

    def __init__(self, objective: FusionObjective) -> None:
        self._objective = objective
        self._tallies: dict[tuple[int, frozenset[str]], Tally] = {}

    def __call__(self, batch: Batch) -> float:
        """Those of a micro-batch, forward and backward together."""
        return sum(self.split(batch))

    def split(self, batch: Batch) -> tuple[float, float]:
        """Forward and backward."""
        tokens, cached = image_tokens(self._objective.sight, batch), _cached_streams(batch)
        if (tokens, cached) not in self._tallies:
            self._tallies[tokens, cached] = _tally(self._objective, tokens, cached)
        return self._tallies[tokens, cached].of(numbers_of(batch, tokens))


def no_closed_form(objective: object) -> str | None:
    """Why there is none for an objective; None where there is one."""
    if not isinstance(objective, FusionObjective):
        return f"{type(objective).__name__} has none: what it computes depends on its checkpoint's own code"
    if objective.is_guided:
        return "model.second_stream efficient_sam_masks has none: heatmaps and masks depend on what the model sees"
    return None


def image_tokens(sight: VisionTower, batch: Batch) -> int:
    """N of a batch."""
    shown = batch.shown
    if isinstance(shown, SeenFeatures):
        if shown.vision is not None:
            return shown.vision.values.shape[1]
        shown = shown.shown
    return shown.features.shape[1] if isinstance(shown, SeenRegions) else sight.prefix + sight.grid**2


def _cached_streams(batch: Batch) -> frozenset[str]:
    """The towers whose tokens a batch brings along."""
    if not isinstance(batch.shown, SeenFeatures):
        return frozenset()
    return frozenset(name for name in ("vision", "second_stream") if getattr(batch.shown, name) is not None)


def numbers_of(batch: Batch, tokens: int) -> dict[str, float]:
    """What operations grow with."""
    images = batch.num_images
    numbers: dict[str, float] = {"images": images}
    for name, block in batch.blocks.items():
        rows, length = block.ids.shape
        seen = images * block.rows_per_image * length * tokens
        numbers |= {
            f"{name}.rows": rows,
            f"{name}.items": len(block.weight),
            f"{name}.words": block.tokens,
            f"{name}.places": rows * length,
            f"{name}.pairs": rows * length**2,
            f"{name}.seen": seen,
            f"{name}.mixed": rows * (tokens + length),
            f"{name}.mixed_pairs": rows * (tokens + length) ** 2,
        }
        if block.targets is not None:
            targets, written = block.targets.ids.shape
            numbers |= {
                f"{name}.written": targets * written,
                f"{name}.written_pairs": targets * written**2,
                f"{name}.read": targets * length,
                f"{name}.read_pairs": targets * written * length,
                f"{name}.read_mixed": targets * (tokens + length),
                f"{name}.read_mixed_pairs": targets * written * (tokens + length),
            }
    return numbers


def _tally(objective: FusionObjective, tokens: int, cached: frozenset[str]) -> Tally:
    tally = Tally()
    first = "vision" not in cached and sight_flops(tally, objective.sight, tokens)
    second = "second_stream" not in cached and stream_flops(tally, objective.tower("second_stream"))
    fused = _fusion(tally, objective.fusion, tokens, first, second)
    read: dict[str, bool] = {}
    for part, _, block, tower_name in objective.parts.values():
        tower = objective.tower(tower_name)
        if block not in read:
            read[block] = TEXT_TOWERS[type(tower)](tally, tower, block, tokens, fused)
        _part(tally, part, tower, block, read[block])
    return tally


def _part(tally: Tally, part: Part, tower: nn.Module, block: str, grad: bool) -> None:
    if isinstance(part, ClassPart):
        tally.sequence(part.head, Rows(f"{block}.items"), grad)
    elif isinstance(part, MatchingPart):
        tally.linear(tower.itm_head, Rows(f"{block}.rows"), grad)
    else:
        ANSWER_TOWERS[type(tower)](tally, tower, block, grad)


def _fusion(tally: Tally, fusion: nn.Module, tokens: int, first: bool, second: bool) -> bool:
    """The fused streams: adapters, encoder, output."""
    rows, encoder = Rows("images", tokens), fusion.encoder
    out_a = tally.sequence(encoder.adapter_a, rows, first)
    out_b = False
    if encoder.adapter_b is not None:
        out_b = tally.sequence(encoder.adapter_b, rows, second or is_trained(fusion.grid))
    inner = encoder.fusion
    if isinstance(inner, DifnetEncoder):
        fused = _difnet(tally, inner, tokens, out_a, out_b)
    elif isinstance(inner, ConcatenationEncoder):
        fused = tally.linear(inner.mix, rows, out_a or out_b)
        for layer in inner.layers:
            fused = _fusion_layer(tally, layer, tokens, fused)
    else:
        fused = out_a or out_b
    return tally.sequence(encoder.output, rows, fused)


def _difnet(tally: Tally, encoder: DifnetEncoder, tokens: int, out_a: bool, out_b: bool) -> bool:
    for layer in encoder.layers[: encoder.separate_layers]:
        for _ in range(encoder.repeats):
            out_a = _fusion_layer(tally, layer, tokens, out_a)
            if encoder.second_stream:
                out_b = _fusion_layer(tally, layer, tokens, out_b)
    fused = out_a or out_b
    for layer in encoder.layers[encoder.separate_layers :]:
        fused = _fusion_layer(tally, layer, tokens, fused)
    return fused


def _fusion_layer(tally: Tally, layer: FusionLayer, tokens: int, grad: bool) -> bool:
    rows, attention = Rows("images", tokens), layer.mhatt.attention
    query, key, value = (
        tally.linear(linear, rows, grad) for linear in (attention.fc_q, attention.fc_k, attention.fc_v)
    )
    pairs = Rows("images", tokens**2)
    mixed = tally.attention(attention.fc_q.out_features, pairs, query=query, key=key, value=value)
    out = tally.linear(attention.fc_o, rows, mixed) or is_trained(layer)
    return tally.linear(layer.pwff.fc2, rows, tally.linear(layer.pwff.fc1, rows, out))
