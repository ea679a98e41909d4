"""A recipe's model section becomes an objective: towers by reference, fusion by sizes, codecs by tower."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from model.config import AnswersConfig, FusionConfig, HeadKind, LossConfig, ModelConfig, text_towers
from model.fusion.concatenation import ConcatenationEncoder
from model.fusion.difnet import DifnetEncoder
from model.fusion.encoder import FusionEncoder, PlainSum
from model.fusion_objective import FusionObjective, Towers, WeightedPart
from model.looking.guidance import block_of, check_plain_width
from model.looking.second_stream import GridTokens
from model.parts import PARTS, sum_names
from model.parts.seam import PartContext
from model.source import TowerSource
from model.towers.match_tower import MatchTower
from model.towers.tokenizer import BlipCodec, T5Codec
from shards.errors import ConfigError
from shards.read.collate import Layout, TextCodec
from shards.read.collation import BlockCollation
from shards.tasks import TASKS, TaskData

_PLAIN_ANSWERS = AnswersConfig()


class FusedStreams(nn.Module):
    """The trained heart of a run: grid tokens of the second stream, width adapters and the fusion encoder."""

    def __init__(self, encoder: FusionEncoder, grid: GridTokens | None) -> None:
        super().__init__()
        self.encoder, self.grid = encoder, grid

    def forward(self, tokens: Tensor, feature_map: Tensor | None) -> Tensor:
        """(B, N, D) tokens and a (B, C, h, w) map, or None, to (B, N, D') fused tokens."""
        return self.encoder(tokens, None if self.grid is None else self.grid(feature_map).to(tokens.dtype))


class BuiltModel(NamedTuple):
    """An objective and what goes with it."""

    objective: FusionObjective
    answer_codec: BlipCodec | T5Codec | None
    match_codec: BlipCodec | None
    image_size: int | None
    """Side in pixels of the largest input of the vision towers: what the loader should make by default. None where
    they read regions."""
    source: TowerSource
    layouts: dict[str, Layout]
    """How the loader lays out the blocks of text that the parts of the loss read."""
    classes: tuple[str, ...] = ()
    """What the class head names, and the list that a ranking chooses from."""
    answers_by: str | None = None
    """See AnswersConfig.by."""

    @property
    def blocks(self) -> frozenset[str]:
        """The blocks of rows that it reads."""
        return frozenset(self.layouts)

    @property
    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """By the part whose texts they read."""
        codecs = {"answer": self.answer_codec, "match": self.match_codec}
        return {name: codec.tokenizer for name, codec in codecs.items() if codec is not None}

    @property
    def collation(self) -> BlockCollation:
        """How the loader makes its micro-batches."""
        return BlockCollation(self.layouts)

    def settled(self, device: torch.device, any_rank: Callable[[bool], bool]) -> Self:  # noqa: ARG002 - nothing is open
        """See `model.objective.Built.settled`."""
        return self


def build_model(
    config: ModelConfig,
    losses: LossConfig,
    *,
    task: TaskData = TASKS["gqa"],
    answers: AnswersConfig = _PLAIN_ANSWERS,
    classes: Sequence[str] = (),
    seed: int,
    max_question_tokens: int,
    max_answer_tokens: int,
    scratch_tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> BuiltModel:
    """Build or load everything that the recipe's losses use. Untrained weights depend on the seed alone.

    Args:
        classes: what the class head names, and the list that a ranking chooses from.

    Raises:
        ConfigError: parts that do not fit each other, or nothing that would be trained.
        DataError: a checkpoint is missing or damaged.
    """
    torch.manual_seed(seed)
    source = TowerSource(config, scratch_tokenizer)
    used = text_towers(task, losses)
    # Before the towers, which take hold of the layers that they find.
    with torch.random.fork_rng(devices=[]):  # what starts untrained is the same with adapters and without
        adapters = source.adapters(match="match" in used, answer="answer" in used)
    match = source.match(with_head=losses.itm > 0) if "match" in used else None
    answer = source.answer(with_decoder=losses.answer > 0) if "answer" in used else None
    second_stream = source.second_stream() if config.second_stream != "none" else None
    towers = Towers(source.vision(), second_stream, match, answer)
    guided = config.second_stream == "efficient_sam_masks"
    if guided:
        _check_guide(config, source, towers)
    if isinstance(match, MatchTower) and config.guidance.block is not None:
        block_of(match, config.guidance)
    torch.manual_seed(seed)  # the fusion starts the same whatever was loaded or made before it
    fusion = _build_fusion(config.fusion, towers, config.recomputed_share)
    limits = {"max_question_tokens": max_question_tokens, "max_answer_tokens": max_answer_tokens}
    answer_codec = source.codec(config.answer, **limits) if answer is not None else None
    match_codec = source.codec(config.match, **limits) if match is not None else None
    parts = build_parts(
        task,
        losses,
        towers,
        answer_codec=answer_codec,
        max_answer_tokens=max_answer_tokens,
        answers=answers,
        classes=classes,
        head=config.head,
    )
    objective = FusionObjective(
        fusion,
        towers,
        freeze=config.freeze,
        adapters=adapters,
        parts=parts,
        sum_names=sum_names(task.reads),
        guidance=config.guidance if guided else None,
    )
    _check_trains(config, objective)
    layouts = _layouts(task, parts, {"answer": answer_codec, "match": match_codec}, len(classes))
    return BuiltModel(
        objective, answer_codec, match_codec, _largest_input(towers), source, layouts, tuple(classes), answers.by
    )


def build_parts(
    task: TaskData,
    losses: LossConfig,
    towers: Towers,
    *,
    answer_codec: TextCodec | None,
    max_answer_tokens: int,
    answers: AnswersConfig = _PLAIN_ANSWERS,
    classes: Sequence[str] = (),
    head: HeadKind = "lxmert",
) -> dict[str, WeightedPart]:
    """The parts of the loss that have a weight, each with the block that it reads."""
    parts = {}
    for name, weight in weights_of(task, losses).items():
        block = task.blocks[task.reads[name]]
        context = PartContext(
            losses=losses,
            tower=getattr(towers, block.tower),
            block=block,
            codec=answer_codec,
            max_answer_tokens=max_answer_tokens,
            answers=answers,
            classes=classes,
            soft_labels=task.soft_labels,
            head=head,
        )
        part = import_module(f"model.parts.{name}").make(context)
        parts[name] = WeightedPart(part, weight, task.reads[name], block.tower)
    return parts


def weights_of(task: TaskData, losses: LossConfig) -> dict[str, float]:
    """The parts of a task that have a weight, in the order of PARTS."""
    weights = {name: getattr(losses, name) for name in PARTS if name in task.reads}
    return {name: weight for name, weight in weights.items() if weight > 0}


def _layouts(
    task: TaskData,
    parts: Mapping[str, WeightedPart],
    codecs: Mapping[str, TextCodec | None],
    num_classes: int,
) -> dict[str, Layout]:
    layouts: dict[str, Layout] = {}
    for name, entry in parts.items():
        plain = Layout(block=task.blocks[entry.block], codec=codecs[entry.tower])
        layout = layouts.get(entry.block, plain)
        if name == "answer":
            layout = replace(layout, targets=True)
        if name == "classify" and task.soft_labels:
            layout = replace(layout, soft_classes=num_classes)
        layouts[entry.block] = layout
    return layouts


def _build_fusion(config: FusionConfig, towers: Towers, checkpointing: float) -> FusedStreams:
    vision = towers.vision
    width = config.width or vision.width
    second = towers.second_stream
    sizes = {
        "width": width,
        "heads": config.heads,
        "ffn_width": config.ffn_width or 4 * width,
        "layers": config.layers,
        "dropout": config.dropout,
        "gradient_checkpointing": checkpointing,
    }
    fusion: nn.Module = PlainSum()
    if config.name == "concatenation":
        fusion = ConcatenationEncoder(**sizes)
    elif config.name == "difnet":
        fusion = DifnetEncoder(
            **sizes,
            separate_layers=config.separate_layers,
            repeats=config.repeats,
            second_stream=second is not None,
        )
    encoder = FusionEncoder(
        fusion,
        width_a=vision.width,
        width_b=None if second is None else second.width,
        width=width,
        out_width=_read_width(towers),
        dropout=config.dropout,
    )
    grid = None if second is None else GridTokens(vision.grid, second.width, prefix=vision.prefix)
    return FusedStreams(encoder, grid)


def _read_width(towers: Towers) -> int:
    """The width of image tokens that the text encoders read."""
    widths = {tower.read_width for tower in (towers.match, towers.answer) if tower is not None}
    if len(widths) > 1:
        raise ConfigError(
            f"model.match, model.answer: read image tokens of different widths {sorted(widths)}; "
            "name checkpoints of one size"
        )
    return widths.pop()


def _largest_input(towers: Towers) -> int | None:
    second = towers.second_stream
    if towers.vision.medium == "regions":
        return None
    return max(towers.vision.image_size, second.image_size if second is not None else 0)


def _check_guide(config: ModelConfig, source: TowerSource, towers: Towers) -> None:
    """The matching tower reads images before they are fused, and questions as they are made for the answer tower."""
    assert towers.match is not None, "checked with the recipe"
    setting = "model.second_stream: efficient_sam_masks"
    check_plain_width(towers.match, towers.vision.width, setting, instead="efficient_sam")
    match, answer = source.tokenizer(config.match), source.tokenizer(config.answer)
    if match.get_vocab() != answer.get_vocab():
        raise ConfigError(
            f"model.second_stream: efficient_sam_masks needs one vocabulary for questions, and {config.match} and "
            f"{config.answer} have different ones; name a BLIP checkpoint in model.answer"
        )
    starts = {reference: source.text_start(reference) for reference in (config.match, config.answer)}
    if len(set(starts.values())) > 1:
        said = " and ".join(f"{reference} with {start}" for reference, start in starts.items())
        raise ConfigError(
            f"model.second_stream: efficient_sam_masks needs questions that begin alike, and {said} was trained; "
            "set model.text_start"
        )


def _check_trains(config: ModelConfig, objective: FusionObjective) -> None:
    if next(objective.parameters(), None) is None:
        raise ConfigError(
            f"model.fusion: {config.fusion.name} without a second stream has no parameter, and model.freeze holds all "
            "other parts, so nothing would be trained; set model.fusion.name=difnet, name a model.second_stream, or "
            "take a part out of model.freeze (PNP-VQA without a trained part: pnp.looks_with=plain on any run)"
        )
