"""Checkpoints in Hugging Face format, by hub id or local directory; what is missing is named with the way to get it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from model.config import hub_reference, local_directory
from model.tokenizer import load_tokenizer
from shards.errors import ConfigError, DataError

BLIP_ARCHITECTURES = ("BlipForQuestionAnswering", "BlipForImageTextRetrieval", "BlipForConditionalGeneration")
T5_ARCHITECTURES = ("T5ForConditionalGeneration",)


class Checkpoint(NamedTuple):
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_pretrained(reference: str, architectures: Sequence[str]) -> Checkpoint:
    """A checkpoint in fp32, from a local directory or the hub (`id` or `id@revision`), without running its code.

    Args:
        reference: what a recipe names; not `scratch`.
        architectures: class names of `transformers`, one of which it has to be.

    Raises:
        DataError: it is not there; the message says where it was looked for and how to get it.
        ConfigError: it is another kind of model, or lacks weights.
    """
    directory = local_directory(reference)
    name, revision = (str(directory), None) if directory is not None else hub_reference(reference)
    try:
        config = transformers.AutoConfig.from_pretrained(name, revision=revision)
        model_class = _architecture(reference, config, architectures)
        model, report = model_class.from_pretrained(
            name, revision=revision, config=config, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = load_tokenizer(name, revision)
    except (OSError, ValueError) as error:
        raise DataError(_how_to_get(reference, directory, name, revision, error)) from None
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(f"{reference}: weights are missing: {', '.join(missing[:3])} ({len(missing)} in all)")
    text = getattr(config, "text_config", config)
    if 2 * len(tokenizer) < text.vocab_size:
        # transformers 5 makes up a tokenizer of a few tokens where the files of one are missing
        reason = f"its tokenizer knows {len(tokenizer):,} tokens and the model {text.vocab_size:,}"
        raise DataError(_how_to_get(reference, directory, name, revision, ValueError(reason)))
    return Checkpoint(model, tokenizer)


def _architecture(
    reference: str, config: transformers.PreTrainedConfig, architectures: Sequence[str]
) -> type[PreTrainedModel]:
    names = config.architectures or ["nothing"]
    if names[0] not in architectures:
        raise ConfigError(f"{reference}: is a {names[0]}; expected {' or '.join(architectures)}")
    return getattr(transformers, names[0])


def _how_to_get(reference: str, directory: Path | None, name: str, revision: str | None, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if directory is not None:
        return (
            f"{reference}: no checkpoint in {directory.absolute()} ({reason}); expected config.json, "
            "model.safetensors and the files of its tokenizer, as save_pretrained writes them"
        )
    return (
        f"{reference}: not in the local hub cache and not to be fetched ({reason}); {how_to_fetch(name, revision)}; "
        "`duoflow doctor RECIPE` names all that is missing"
    )


def how_to_fetch(hub_id: str, revision: str | None) -> str:
    """The commands that bring a hub checkpoint here, with a network and without."""
    at = f" --revision {revision}" if revision else ""
    return (
        f"run `hf download {hub_id}{at}` on a machine with a network, or copy it there with `--local-dir DIR` and "
        "write DIR in the recipe"
    )
