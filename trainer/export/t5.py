"""T5 as a checkpoint of its own."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

T5 = "t5"
"""Its directory in an export."""


def save_t5(
    loaded: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    weights: Mapping[str, Tensor],
    directory: Path,
) -> None:
    """Write T5 and its tokenizer.

    Args:
        loaded: one of its form.
        weights: under every name that it has for them.
    """
    config = type(loaded.config).from_dict(loaded.config.to_dict())
    with torch.device("meta"):
        model = type(loaded)(config)
    # Assigned, not copied: transformers ties the head to the embeddings in every new T5, and copies of both would go
    # into one tensor where the checkpoint, as Flan-T5 and T5 v1.1, has them apart.
    model.load_state_dict(weights, strict=True, assign=True)
    config.tie_word_embeddings = config.scale_decoder_outputs  # as published: transformers sets it to true on loading
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
