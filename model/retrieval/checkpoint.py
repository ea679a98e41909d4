"""A CLIP or SigLIP: what its files say before it is loaded, and how it is loaded. No code of a hub is ever run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

from model.references import SCRATCH
from model.retrieval.collation import ProcessorEyes
from model.retrieval.objective import Towers
from model.retrieval.towers import TextTower, VisionTower
from model.towers.checkpoint_files import CONFIG, SCRATCH_REFUSED, TOKENIZERS, WEIGHTS
from model.towers.hub import Source, check_weights, reading, without_reports
from shards.errors import ConfigError, DataError

KEY = "model.retrieval"
KINDS = ("clip", "siglip")
"""`model_type` of what has a text and a vision tower and one space for both."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class RetrievalCheckpoint(NamedTuple):
    """Both towers in one model, with the processor of texts and images."""

    model: PreTrainedModel
    processor: ProcessorMixin

    @property
    def reads_padding(self) -> bool:
        """See `TextForm.reads_padding`."""
        return self.model.config.model_type == "siglip"

    @property
    def context(self) -> int:
        """Tokens that the text tower reads."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def towers(self) -> Towers:
        """The towers of the model itself, not copies of them. SigLIP's have their projections inside."""
        model = self.model
        return Towers(
            TextTower(model.text_model, getattr(model, "text_projection", None)),
            VisionTower(model.vision_model, getattr(model, "visual_projection", None)),
        )


def check_checkpoint(reference: str) -> Mapping[str, Any] | None:
    """What the files of a reference say of it, as far as they are on this machine; nothing is loaded.

    Returns:
        Its config.json; None where that is not here yet.

    Raises:
        ConfigError: it has not two towers and one space, or no image processor.
        DataError: a directory without a checkpoint, or a config.json that is none.
    """
    if reference == SCRATCH:
        raise ConfigError(f"{KEY}: {SCRATCH_REFUSED}")
    source = Source.of(f"{KEY}={reference}", reference)
    config = source.config()
    if config is None:
        return None
    kind = config["model_type"]
    _check_kind(source, kind)
    if source.directory is not None and not any(map(source.find, _PROCESSORS)):
        raise DataError(source.missing(f"no {_PROCESSORS[0]}, which says how images are made"))
    return config


def load_checkpoint(reference: str) -> RetrievalCheckpoint:
    """A checkpoint in fp32, from a directory or the hub.

    Raises:
        DataError: it is not there, or damaged.
        ConfigError: it is another kind of model, lacks weights, or its parts do not fit each other.
    """
    check_checkpoint(reference)
    source = Source.of(f"{KEY}={reference}", reference)
    name, revision = source.name, source.revision
    with without_reports():
        with reading(source, [CONFIG]):
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        _check_kind(source, config.model_type)
        with reading(source, (*_PROCESSORS, *TOKENIZERS)):
            processor = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
        with reading(source, WEIGHTS):
            model, report = AutoModel.from_pretrained(
                name,
                revision=revision,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    check_weights(source, report)
    _check_processor(source, config, processor)
    return RetrievalCheckpoint(model, processor)


def _check_kind(source: Source, kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(
            f"{source.said}: is a {kind}; expected a text and a vision tower with one space: a checkpoint of "
            f"{' or '.join(KINDS)}, such as openai/clip-vit-large-patch14-336"
        )


def _check_processor(source: Source, config: Any, processor: Any) -> None:
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise DataError(source.missing(f"no {_PROCESSORS[0]} beside a tokenizer"))
    found = tuple(ProcessorEyes(processor.image_processor).show(Image.new("RGB", (200, 300))).shape)
    side = config.vision_config.image_size
    if found != (3, side, side):
        raise ConfigError(
            f"{source.said}: its image processor makes {found[0]} x {found[1]} x {found[2]} of a page, and its vision "
            f"tower reads 3 x {side} x {side}; {source.again}"
        )
    rows, tokens = config.text_config.vocab_size, len(processor.tokenizer)
    if tokens > rows:
        raise ConfigError(
            f"{source.said}: its tokenizer knows {tokens:,} tokens and its text tower {rows:,}; {source.again}"
        )
