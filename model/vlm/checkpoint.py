"""A checkpoint with images and text in and text out: what its files say before it is loaded, and how it is loaded.

No code of a hub is ever run.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from model.references import SCRATCH
from model.towers.checkpoint_files import CONFIG, SCRATCH_REFUSED, TOKENIZERS, WEIGHTS
from model.towers.hub import Source, check_weights, reading, without_reports
from shards.errors import ConfigError

KEY = "model.vlm"
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Files that may hold a chat template."""


class VlmCheckpoint(NamedTuple):
    """A model with its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin


def check_checkpoint(reference: str) -> Mapping[str, Any] | None:
    """What the files of a reference say of it, as far as they are on this machine; nothing is loaded.

    Returns:
        Its config.json; None where that is not here yet.

    Raises:
        ConfigError: it is no model with images and text in and text out, or has no chat template.
        DataError: a directory without a checkpoint, or a config.json that is none.
    """
    if reference == SCRATCH:
        raise ConfigError(f"{KEY}: {SCRATCH_REFUSED}")
    source = Source.of(f"{KEY}={reference}", reference)
    config = source.config()
    if config is None:
        return None
    kind = config["model_type"]
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(
            f"{source.said}: is a {kind}, which does not read images with text and write text; name a checkpoint that "
            "AutoModelForImageTextToText loads, such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    if any(source.find(name) for name in _TEMPLATES) and not any(map(_has_template, map(source.find, _TEMPLATES))):
        raise ConfigError(without_template(source.said))
    return config


def without_template(said: str) -> str:
    """That a checkpoint cannot be asked."""
    return (
        f"{said}: has no chat template, so that nobody knows how it is asked; take the instruction-tuned checkpoint, "
        "or put its chat_template.jinja beside the weights"
    )


def check_quantize(quantize: str, device_type: str) -> None:
    """Whether weights in 4 bits can be computed with here.

    Raises:
        ConfigError: there is no CUDA device, or no bitsandbytes.
    """
    if device_type != "cuda":
        raise ConfigError(f"vlm.quantize: {quantize} computes on CUDA alone, and this machine has none; set it to null")
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"vlm.quantize: {quantize} needs bitsandbytes; run `pip install -e .[qlora]`")


def load_checkpoint(reference: str, *, quantize: str | None = None) -> VlmCheckpoint:
    """A checkpoint in the dtype that its weights have, from a directory or the hub.

    Args:
        quantize: see `VlmConfig.quantize`; its weights are on this process's CUDA device then.

    Raises:
        DataError: it is not there, or damaged.
        ConfigError: it is another kind of model, has no chat template, or lacks weights.
    """
    check_checkpoint(reference)
    source = Source.of(f"{KEY}={reference}", reference)
    name, revision = source.name, source.revision
    narrow: dict[str, Any] = {}
    if quantize is not None:
        check_quantize(quantize, "cuda" if torch.cuda.is_available() else "cpu")
        narrow = {"quantization_config": _four_bits(quantize), "device_map": {"": torch.cuda.current_device()}}
    with without_reports():
        with reading(source, [CONFIG]):
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ConfigError(f"{source.said}: is a {config.model_type}; expected a model with images and text")
        with reading(source, TOKENIZERS):
            processor = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
        if getattr(processor, "chat_template", None) is None:
            raise ConfigError(without_template(source.said))
        with reading(source, WEIGHTS):
            model, report = AutoModelForImageTextToText.from_pretrained(
                name,
                revision=revision,
                config=config,
                dtype="auto",
                attn_implementation="sdpa",
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **narrow,
            )
    check_weights(source, report)
    return VlmCheckpoint(model, processor)


def context_of(model: PreTrainedModel) -> int:
    """Tokens that its language model reads."""
    return model.config.get_text_config().max_position_embeddings


def end_ids_of(model: PreTrainedModel, processor: ProcessorMixin) -> tuple[int, ...]:
    """What ends an answer: as the checkpoint generates, and as its tokenizer says."""
    generated = model.generation_config.eos_token_id
    ends = [*(generated if isinstance(generated, list) else [generated]), processor.tokenizer.eos_token_id]
    return tuple(dict.fromkeys(end for end in ends if end is not None))


def narrow_fault(model: PreTrainedModel, reference: str) -> str | None:
    """What leaves the range of fp16; None for a checkpoint that was made in it, or in fp32."""
    if model.dtype != torch.bfloat16:
        return None
    return f"{reference}, whose weights are bfloat16 (activations may pass 65,504, where fp16 ends)"


def _four_bits(kind: str) -> BitsAndBytesConfig:
    """As QLoRA has it: 4-bit NormalFloat, whose scales are quantised once more."""
    wide = torch.cuda.is_bf16_supported(including_emulation=False)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if wide else torch.float16,
    )


def _has_template(path: Path | None) -> bool:
    if path is None:
        return False
    if path.suffix == ".jinja":
        return True
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False
