"""References to checkpoints become towers: BLIP from a hub id or a directory, EfficientSAM from its file.

Each checkpoint is read once; equal references share their modules.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import nn
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from model.config import SCRATCH, EfficientSamConfig, ModelConfig, ScratchConfig, hub_reference, local_directory
from model.efficient_sam import EFFICIENT_SAM_CONFIGS, EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam_weights import load_efficient_sam_encoder
from model.objective import AnswerTower, MatchTower
from model.second_stream import EfficientSamStream
from model.tokenizer import BlipCodec, load_tokenizer
from model.untrained import initialize_untrained
from shards.errors import ConfigError, DataError

BLIP_ARCHITECTURES = ("BlipForQuestionAnswering", "BlipForImageTextRetrieval", "BlipForConditionalGeneration")
SCRATCH_INITIALIZER_RANGE = 0.02
"""BlipVisionConfig's own default, 1e-10, is meant to be overwritten by a checkpoint: nothing trains from it."""


class Checkpoint(NamedTuple):
    """A BLIP model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


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

    def vision(self) -> nn.Module:
        """BLIP's vision transformer.

        Raises:
            ConfigError, DataError: the checkpoint is missing or holds none (all methods).
        """
        return self._part("model.vision", self.config.vision, "vision_model")

    def match(self) -> MatchTower:
        """The ITM text encoder with its head."""
        reference = self.config.match
        encoder = self._part("model.match", reference, "text_encoder")
        if reference == SCRATCH:
            return MatchTower(encoder, self._scratch_itm_head())
        return MatchTower(encoder, self._part("model.match", reference, "itm_head"))

    def answer(self) -> AnswerTower:
        """The question encoder with the answer decoder."""
        reference = self.config.answer
        encoder = self._part("model.answer", reference, "text_encoder")
        return AnswerTower(encoder, self._part("model.answer", reference, "text_decoder"))

    def second_stream(self) -> EfficientSamStream:
        """EfficientSAM's image encoder."""
        return EfficientSamStream(build_efficient_sam(self.config.efficient_sam, self.config.gradient_checkpointing))

    def codec(self, reference: str, *, max_question_tokens: int, max_answer_tokens: int) -> BlipCodec:
        """How the tower of a reference reads text."""
        checkpoint = self._load(reference)
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
            max_question_tokens=max_question_tokens,
            max_answer_tokens=max_answer_tokens,
        )

    def blip_config(self, reference: str) -> BlipConfig:
        """The configuration behind a reference, for an export that `from_pretrained` loads."""
        return self._load(reference).model.config

    def tokenizer(self, reference: str) -> PreTrainedTokenizerBase:
        """The tokenizer of a reference."""
        return self._load(reference).tokenizer

    def _part(self, key: str, reference: str, name: str) -> nn.Module:
        model = self._load(reference).model
        part = getattr(model, name, None)
        if part is None:
            fitting = "BlipForImageTextRetrieval" if name == "itm_head" else "BlipForQuestionAnswering"
            raise ConfigError(
                f"{key}: {reference} is a {type(model).__name__} and has no {name}; expected a {fitting} checkpoint"
            )
        return part

    def _scratch_itm_head(self) -> nn.Module:
        return nn.Linear(self.config.scratch.width, 2)

    def _load_once(self, reference: str) -> Checkpoint:
        if reference == SCRATCH:
            tokenizer = self._scratch_tokenizer()
            model = BlipForQuestionAnswering(scratch_blip_config(self.config.scratch, tokenizer))
            initialize_untrained(model, model.vision_model.embeddings.position_embedding)
            return Checkpoint(model, tokenizer)
        return load_blip(reference)


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


def load_blip(reference: str) -> Checkpoint:
    """A BLIP checkpoint in fp32, from a local directory or the hub (`id` or `id@revision`), without running its code.

    Raises:
        DataError: it is not there; the message says where it was looked for and how to get it.
        ConfigError: it is another kind of model, or lacks weights.
    """
    directory = local_directory(reference)
    name, revision = (str(directory), None) if directory is not None else hub_reference(reference)
    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=revision)
        model_class = _architecture(reference, config)
        model, report = model_class.from_pretrained(
            name, revision=revision, config=config, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = load_tokenizer(name, revision)
    except (OSError, ValueError) as error:
        raise DataError(_how_to_get(reference, directory, name, revision, error)) from None
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(f"{reference}: weights are missing: {', '.join(missing[:3])} ({len(missing)} in all)")
    return Checkpoint(model, tokenizer)


def _architecture(reference: str, config: transformers.PreTrainedConfig) -> type[PreTrainedModel]:
    names = config.architectures or ["nothing"]
    if names[0] not in BLIP_ARCHITECTURES:
        raise ConfigError(f"{reference}: is a {names[0]}; expected one of {', '.join(BLIP_ARCHITECTURES)}")
    return getattr(transformers, names[0])


def _how_to_get(reference: str, directory: Path | None, name: str, revision: str | None, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if directory is not None:
        return (
            f"{reference}: no BLIP checkpoint in {directory.absolute()} ({reason}); expected config.json, "
            "model.safetensors and the files of its tokenizer, as save_pretrained writes them"
        )
    at = f" --revision {revision}" if revision else ""
    return (
        f"{reference}: not in the local hub cache and not to be fetched ({reason}); run `hf download {name}{at}` on a "
        f"machine with a network, or copy it there with `--local-dir DIR` and write DIR in the recipe"
    )


def build_efficient_sam(config: EfficientSamConfig, checkpointing: bool) -> EfficientSamEncoder:
    """The second vision tower: from its weights where the recipe names a file, else untrained."""
    sizes = efficient_sam_sizes(config)
    if config.checkpoint is None:
        assert sizes is not None, "custom sizes without a checkpoint are checked with the recipe"
        encoder = EfficientSamEncoder(sizes, gradient_checkpointing=checkpointing)
        initialize_untrained(encoder, encoder.pos_embed)
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
