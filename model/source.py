"""References become towers: BLIP, T5 and LXMERT from a hub id or a directory, EfficientSAM from its file, and any
backbone of timm.

Each checkpoint is read once; equal references share their modules, but for the two vision towers.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import get_args

import torch
from torch import nn
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
    LxmertModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)

from model.config import EfficientSamConfig, ModelConfig, ScratchConfig, TextStart, Tower, vision_references
from model.efficient_sam.encoder import EFFICIENT_SAM_CONFIGS, EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.weights import load_efficient_sam_encoder, load_segmenter
from model.looking.second_stream import EfficientSamMaskStream, EfficientSamStream, TowerStream
from model.references import EFFICIENT_SAM, SCRATCH, read_reference
from model.towers.answer_towers import AnswerTower, BlipAnswerTower, T5AnswerTower
from model.towers.checkpoint_files import BLIP_ARCHITECTURES, LXMERT_ARCHITECTURES, T5_ARCHITECTURES
from model.towers.hub import Checkpoint, load_pretrained
from model.towers.lora import add_lora
from model.towers.lxmert import LxmertTower, RegionTower
from model.towers.match_tower import MatchTower
from model.towers.timm_backbone import check_trainable, examine, load_backbone
from model.towers.tokenizer import BlipCodec, T5Codec
from model.towers.vision import BlipVisionTower, EfficientSamTower, VisionTower
from model.untrained import initialize_untrained, initialize_untrained_vision
from shards.errors import ConfigError

SCRATCH_INITIALIZER_RANGE = 0.02
"""BlipVisionConfig's own default, 1e-10, is meant to be overwritten by a checkpoint: nothing trains from it."""


class TowerSource:
    """Gives the parts that the references of a recipe name; a checkpoint is loaded on first use and then shared.

    Args:
        config: the model section of the recipe.
        scratch_tokenizer: makes or reads the tokenizer of `scratch` towers; called only if there are any.
    """

    def __init__(self, config: ModelConfig, scratch_tokenizer: Callable[[], PreTrainedTokenizerBase]) -> None:
        self.config = config
        self._scratch_tokenizer = lru_cache(scratch_tokenizer)
        self._load = lru_cache(self._load_once)

    def vision(self) -> VisionTower:
        """The first vision tower: BLIP's vision transformer, a backbone of timm, or EfficientSAM's encoder.

        Raises:
            ConfigError, DataError: the checkpoint is missing or holds none (all methods).
        """
        if self.config.vision == EFFICIENT_SAM:
            return EfficientSamTower(build_efficient_sam(self.config.efficient_sam, checkpointing=0.0))
        if read_reference(self.config.vision).is_timm:
            return self._backbone("vision")
        if self.is_lxmert(self.config.vision):
            return RegionTower(self.lxmert(), checkpointing=self.config.recomputed_share)
        module = self._part("model.vision", self.config.vision, "vision_model")
        return BlipVisionTower(module, checkpointing=self.config.recomputed_share)

    def match(self, *, with_head: bool = True) -> MatchTower | LxmertTower:
        """The ITM text encoder, with its head where pairs are matched; or LXMERT's side of text."""
        reference = self.config.match
        if self.is_lxmert(reference):
            return self._lxmert_text(matches=with_head)
        encoder = self._part("model.match", reference, "text_encoder")
        if not with_head:
            return MatchTower(encoder, None, checkpointing=self.config.recomputed_share)
        head = self._scratch_itm_head() if reference == SCRATCH else self._part("model.match", reference, "itm_head")
        return MatchTower(encoder, head, checkpointing=self.config.recomputed_share)

    def answer(self, *, with_decoder: bool = True) -> AnswerTower:
        """BLIP's question encoder, with its answer decoder where answers are written; or T5."""
        reference = self.config.answer
        model = self._load(reference).model
        if isinstance(model, T5ForConditionalGeneration):
            return T5AnswerTower(model, checkpointing=self.config.recomputed_share)
        encoder = self._part("model.answer", reference, "text_encoder")
        decoder = self._part("model.answer", reference, "text_decoder") if with_decoder else None
        return BlipAnswerTower(encoder, decoder, checkpointing=self.config.recomputed_share)

    def is_lxmert(self, reference: str) -> bool:
        """Whether a reference is to an LXMERT."""
        return isinstance(self._load(reference).model, LxmertModel)

    def lxmert(self) -> LxmertModel:
        """The whole model of which both towers are parts.

        Raises:
            ConfigError: the recipe names something else for one of them, or what goes with pixels alone.
        """
        config = self.config
        if config.second_stream != "none":
            raise ConfigError(
                f"model.second_stream: {config.second_stream} looks at pixels, and {config.vision} reads regions; "
                "set it to none"
            )
        if config.match != config.vision:
            raise ConfigError(
                f"model.match: {config.match}, and model.vision is {config.vision}: the two halves of one LXMERT; name "
                "one checkpoint in both"
            )
        if config.lora.match.rank:
            raise ConfigError("model.lora.match: an LXMERT is trained whole or not at all; set its rank to 0")
        return self._load(config.vision).model

    def _lxmert_text(self, *, matches: bool) -> LxmertTower:
        if matches:
            raise ConfigError(
                f"losses.itm: {self.config.match} has no head that matches pairs here; set it to 0, or name a BLIP "
                "checkpoint in model.match"
            )
        return LxmertTower(self.lxmert(), checkpointing=self.config.recomputed_share)

    def second_stream(self) -> TowerStream:
        """EfficientSAM's image encoder, alone or with what makes masks; or a second BLIP's; or a backbone of timm."""
        config, checkpointing = self.config, self.config.recomputed_share
        if config.second_stream == "timm":
            return TowerStream(self._backbone("second_stream"))
        if config.second_stream == "blip":
            own_copy = self._load_once(config.second_vision).model  # shared, the two streams would be one
            return TowerStream(BlipVisionTower(own_copy.vision_model, checkpointing=checkpointing))
        encoder = build_efficient_sam(config.efficient_sam, checkpointing)
        if config.second_stream == "efficient_sam_masks":
            assert config.efficient_sam.checkpoint is not None, "checked with the recipe"
            return EfficientSamMaskStream(load_segmenter(config.efficient_sam.checkpoint, image_encoder=encoder))
        return EfficientSamStream(encoder)

    def adapters(self, *, match: bool, answer: bool) -> dict[str, nn.Module]:
        """Puts LoRA adapters into the towers in use that the recipe adapts; gives their trained modules by part."""
        used = {"match": match, "answer": answer}
        sections = {part: getattr(self.config.lora, part) for part in used if used[part]}
        return {
            part: add_lora(self._load(getattr(self.config, part)).model, section, f"model.lora.{part}")
            for part, section in sections.items()
            if section.rank
        }

    def codec(self, reference: str, *, max_question_tokens: int, max_answer_tokens: int) -> BlipCodec | T5Codec:
        """How the tower of a reference reads text."""
        checkpoint = self._load(reference)
        limits = {"max_question_tokens": max_question_tokens, "max_answer_tokens": max_answer_tokens}
        if isinstance(checkpoint.model, T5ForConditionalGeneration):
            return T5Codec.of(checkpoint.model.config, checkpoint.tokenizer, **limits)
        if isinstance(checkpoint.model, LxmertModel):
            return self._lxmert_codec(reference, checkpoint, **limits)
        text = checkpoint.model.config.text_config
        longest = max_question_tokens + max_answer_tokens
        if longest > text.max_position_embeddings:
            raise ConfigError(
                f"data.max_question_tokens + data.max_answer_tokens: {longest}, but {reference} has "
                f"{text.max_position_embeddings} positions; lower one of them"
            )
        return BlipCodec(
            tokenizer=checkpoint.tokenizer,
            start_id=text.bos_token_id,
            end_id=text.sep_token_id,
            pad_id=text.pad_token_id,
            first_id=self._first_id(reference, checkpoint),
            **limits,
        )

    def _lxmert_codec(
        self, reference: str, checkpoint: Checkpoint, *, max_question_tokens: int, max_answer_tokens: int
    ) -> BlipCodec:
        """`[CLS] text [SEP]`, as BERT reads it."""
        tokenizer, positions = checkpoint.tokenizer, checkpoint.model.config.max_position_embeddings
        if max_question_tokens > positions:
            raise ConfigError(
                f"data.max_question_tokens: {max_question_tokens}, but {reference} has {positions} positions; lower it"
            )
        return BlipCodec(
            tokenizer=tokenizer,
            start_id=tokenizer.cls_token_id,
            end_id=tokenizer.sep_token_id,
            pad_id=tokenizer.pad_token_id,
            first_id=tokenizer.cls_token_id,
            max_question_tokens=max_question_tokens,
            max_answer_tokens=max_answer_tokens,
        )

    def named_parts(self, reference: str) -> Iterator[tuple[str, nn.Module]]:
        """The parts of the model behind a reference to BLIP, used or not."""
        yield from self._load(reference).model.named_children()

    def text_start(self, reference: str) -> TextStart:
        """What the text begins with that BLIP's encoders behind a reference read.

        Raises:
            ConfigError: the checkpoint says something else of itself.
        """
        return text_start_of(self.config, reference, self.blip_config(reference))

    def vision_of(self, reference: str) -> nn.Module:
        """The vision tower that lies in a reference to BLIP, used or not."""
        return self._load(reference).model.vision_model

    def unrounded(self, reference: str) -> "TowerSource":
        """Where the weights behind a reference are as they were loaded: here, or, once what is frozen of them has been
        cast to half precision, in a source of their own, which loads them again.

        What starts untrained and frozen is nowhere else, and stays as rounded as it is.
        """
        values = self._load(reference).model.state_dict().values()
        rounded = any(value.is_floating_point() and value.dtype != torch.float32 for value in values)
        return TowerSource(self.config, self._scratch_tokenizer) if rounded and reference != SCRATCH else self

    def blip_config(self, reference: str) -> BlipConfig:
        """The configuration behind a reference, for an export that `from_pretrained` loads."""
        return self._load(reference).model.config

    def tokenizer(self, reference: str) -> PreTrainedTokenizerBase:
        """The tokenizer of a reference."""
        return self._load(reference).tokenizer

    def _first_id(self, reference: str, checkpoint: Checkpoint) -> int:
        tokenizer, text = checkpoint.tokenizer, checkpoint.model.config.text_config
        if self.text_start(reference) == "cls":
            return tokenizer.cls_token_id
        # The published tokenizers are BERT's own: they know neither [DEC] nor [ENC], which follows it.
        first_id = tokenizer.get_vocab().get("[ENC]", text.bos_token_id + 1)
        if first_id >= text.vocab_size:
            raise ConfigError(
                f"model.text_start: enc: {reference} has embeddings for {text.vocab_size:,} tokens and none for [ENC], "
                f"which would be {first_id}; set model.text_start=cls"
            )
        return first_id

    def _part(self, key: str, reference: str, name: str) -> nn.Module:
        model = self._load(reference).model
        part = getattr(model, name, None)
        if part is None:
            fitting = "BlipForImageTextRetrieval" if name == "itm_head" else "BlipForQuestionAnswering"
            raise ConfigError(
                f"{key}: {reference} is a {type(model).__name__} and has no {name}; expected a {fitting} checkpoint"
            )
        return part

    def _backbone(self, tower: Tower) -> VisionTower:
        """A backbone of timm; never shared, since what trains one stream would train the other."""
        key, reference = vision_references(self.config)[tower]
        trained, checkpointing = tower not in self.config.freeze, self.config.recomputed_share
        backbone = examine(f"{key}={reference}", read_reference(reference))
        if trained:
            check_trainable(backbone, freeze=tower, checkpointing=checkpointing > 0)
        cells_alone = tower == "second_stream"
        return load_backbone(backbone, trained=trained, checkpointing=checkpointing > 0, cells_alone=cells_alone)

    def _scratch_itm_head(self) -> nn.Module:
        return nn.Linear(self.config.scratch.width, 2)

    def _load_once(self, reference: str) -> Checkpoint:
        if reference == SCRATCH:
            tokenizer = self._scratch_tokenizer()
            model = BlipForQuestionAnswering(scratch_blip_config(self.config.scratch, tokenizer))
            initialize_blip(model)
            return Checkpoint(model, tokenizer)
        return load_pretrained(reference, (*BLIP_ARCHITECTURES, *T5_ARCHITECTURES, *LXMERT_ARCHITECTURES))


def text_start_of(config: ModelConfig, reference: str, checkpoint: BlipConfig) -> TextStart:
    """What the text begins with that BLIP's encoders behind a reference read: the recipe's, or the checkpoint's own.

    Args:
        checkpoint: its configuration; an export says of itself how it was trained, BLIP's own do not.

    Raises:
        ConfigError: it says something else.
    """
    if config.text_start is not None:
        return config.text_start
    if reference == SCRATCH:
        return "cls"
    recorded = getattr(checkpoint, "text_start", "enc")
    if recorded not in get_args(TextStart):
        raise ConfigError(
            f"{reference}: config.json: text_start: {recorded!r}, expected {' or '.join(get_args(TextStart))}; "
            "set model.text_start"
        )
    return recorded


def scratch_blip_config(sizes: ScratchConfig, tokenizer: PreTrainedTokenizerBase) -> BlipConfig:
    """Sizes and special ids of a BLIP model that starts untrained.

    Every special id is set: a small vocabulary would otherwise keep bos 30522 and sep 102, which lie outside of it.
    """
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        encoder_hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        projection_dim=sizes.width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=128,
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = BlipVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=4 * sizes.width,
        projection_dim=sizes.width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        attention_dropout=sizes.dropout,
        initializer_range=SCRATCH_INITIALIZER_RANGE,
    )
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=sizes.width)


def initialize_blip(model: BlipForQuestionAnswering) -> None:
    """Starting weights of a whole BLIP."""
    initialize_untrained(model)
    vision = model.vision_model
    outputs = [linear for layer in vision.encoder.layers for linear in (layer.self_attn.projection, layer.mlp.fc2)]
    initialize_untrained_vision(vision.embeddings.patch_embedding, vision.embeddings.position_embedding, outputs)


def initialize_efficient_sam(encoder: EfficientSamEncoder) -> None:
    """Starting weights of EfficientSAM's image encoder."""
    initialize_untrained(encoder)
    outputs = [linear for block in encoder.blocks for linear in (block.attn.proj, block.mlp.fc2)]
    initialize_untrained_vision(encoder.patch_embed.proj, encoder.pos_embed, outputs)


def build_efficient_sam(config: EfficientSamConfig, checkpointing: float) -> EfficientSamEncoder:
    """The second vision tower: from its weights where the recipe names a file, else untrained."""
    sizes = efficient_sam_sizes(config)
    if config.checkpoint is None:
        assert sizes is not None, "custom sizes without a checkpoint are checked with the recipe"
        encoder = EfficientSamEncoder(sizes, gradient_checkpointing=checkpointing)
        initialize_efficient_sam(encoder)
        return encoder
    encoder = load_efficient_sam_encoder(config.checkpoint, sizes)
    encoder.gradient_checkpointing = checkpointing
    return encoder


def efficient_sam_sizes(config: EfficientSamConfig) -> EfficientSamEncoderConfig | None:
    """The sizes that a recipe gives; None when they are left to the checkpoint's own file."""
    if config.variant != "custom":
        return EFFICIENT_SAM_CONFIGS[config.variant]
    named = ("image_size", "patch_size", "width", "depth", "heads", "neck_width")
    given = {name: getattr(config, name) for name in named if getattr(config, name) is not None}
    return EfficientSamEncoderConfig(**given) if given else None
