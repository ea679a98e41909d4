"""Checkpoints in Hugging Face format, by hub id or local directory; what is missing is named with the way to get it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub import HfApi, constants
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from model.references import SCRATCH, hub_reference, local_directory
from model.towers.checkpoint_files import (
    CONFIG,
    LXMERT_ARCHITECTURES,
    SCRATCH_REFUSED,
    TOKENIZERS,
    WEIGHTS,
    Find,
    architecture_of,
    examine_files,
    fetch_command,
    in_cache,
    in_directory,
    is_hub_id,
    short_reason,
)
from model.towers.t5 import name_start_token
from shards.errors import ConfigError, DataError, UserError


class Checkpoint(NamedTuple):
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


_ORIGINAL_NAMES = {
    r"^(?:module\.)?(?:lxrt_encoder\.model\.)?bert\.": "lxmert.",
    r"^(?:module\.)?logit_fc\.": "answer_head.logit_fc.",
    r"^module\.": "",
}
"""Of weights as LXMERT's own code saves them -> transformers': pre-trained ones (`Epoch20_LXRT.pth`), those of a
fine-tuned task (`BEST.pth`), and either inside of DataParallel."""


def load_pretrained(
    reference: str, architectures: Sequence[str], *, key: str | None = None, answer_head: bool = False
) -> Checkpoint:
    """A checkpoint in fp32, from a local directory or the hub (`id` or `id@revision`), without running its code.

    Args:
        reference: what a recipe names.
        architectures: class names of `transformers`, one of which it has to be.
        key: of the recipe that names it, for errors.
        answer_head: whether the head over answers is wanted of an LXMERT; else it is loaded without any head.

    Raises:
        DataError: it is not there, or damaged; the message says where it was looked for and how to get it.
        ConfigError: it is another kind of model, lacks weights, or is `scratch`.
    """
    said = reference if key is None else f"{key}={reference}"
    if reference == SCRATCH:
        raise ConfigError(SCRATCH_REFUSED if key is None else f"{key}: {SCRATCH_REFUSED}")
    source = Source.of(said, reference)
    with without_reports():
        return _load(source, architectures, answer_head)


_HUB_SECONDS = 20.0
"""In which the hub has to answer."""


class Source(NamedTuple):
    """Where a checkpoint lies, and what is said when it cannot be loaded."""

    said: str
    name: str
    """What transformers loads: a directory, or a hub id."""
    directory: Path | None
    revision: str | None
    find: Find

    @classmethod
    def of(cls, said: str, reference: str) -> "Source":
        directory = local_directory(reference)
        if directory is None:
            hub_id, revision = hub_reference(reference)
            if not is_hub_id(hub_id):
                raise DataError(f"{said}: no such directory, and no hub id (OWNER/NAME or OWNER/NAME@REVISION)")
            return cls(said, hub_id, None, revision, in_cache(hub_id, revision))
        source = cls(said, str(directory), directory, None, in_directory(directory))
        if not directory.is_dir():
            raise DataError(source.missing("no such directory"))
        if source.find(CONFIG) is None:
            raise DataError(source.missing("; ".join(examine_files(source.find)[0])))
        return source

    def missing(self, reason: str) -> str:
        """That files are not there."""
        if self.directory is not None:
            return (
                f"{self.said}: no checkpoint in {self.directory.absolute()} ({reason}); expected {CONFIG}, "
                f"{WEIGHTS[0]} and the files of its tokenizer, as save_pretrained writes them"
            )
        lacking = "; ".join(examine_files(self.find)[0]) if self.find(CONFIG) is not None else f"no {CONFIG}"
        command = fetch_command(self.name, self.revision)
        return (
            f"{self.said}: {lacking or 'not whole'} in the hub cache {constants.HF_HUB_CACHE} and not to be fetched "
            f"({reason}); run `{command}` on a machine with a network, or copy it there with `--local-dir DIR` and "
            "write DIR in the recipe; `duoflow doctor RECIPE` names all that is missing"
        )

    def damaged(self, file: str, reason: str) -> str:
        """That a file is there and cannot be what it was."""
        return f"{self.said}: {self.place(file)}: damaged or not whole ({reason}); {self.again}"

    def config(self) -> Mapping[str, Any] | None:
        """Its config.json, which names a `model_type`; None where that is not here yet. Nothing is loaded.

        Raises:
            DataError: it is none.
        """
        file = self.find(CONFIG)
        if file is None:
            return None
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            config["model_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(self.damaged(CONFIG, f"{type(error).__name__}: {error}")) from None
        return config

    def place(self, file: str) -> Path:
        """Where a file lies that is there."""
        return self.find(file).absolute()

    @property
    def again(self) -> str:
        """How a checkpoint that is there is replaced."""
        if self.directory is None:
            return f"fetch it again: `{fetch_command(self.name, self.revision)} --force-download`"
        return "a copy or a download was cut off, or files of two checkpoints are mixed: bring all of them here again"


def check_reachable(said: str, reference: str) -> None:
    """Whether what this machine lacks of a checkpoint can be fetched, before anything is started that needs it.

    Args:
        said: `key=reference`, for errors.

    Raises:
        DataError: it is on the hub, not whole in the hub's cache, and the hub cannot be asked for it.
    """
    source = Source.of(said, reference)
    if source.directory is not None or not examine_files(source.find)[0]:
        return
    reason = "HF_HUB_OFFLINE=1" if constants.HF_HUB_OFFLINE else None
    try:
        if reason is None:
            HfApi().model_info(source.name, revision=source.revision, timeout=_HUB_SECONDS)
    except Exception as error:  # no network, no such repository, no right to it: the hub's client fails in many ways
        reason = short_reason(error)
    if reason is not None:
        raise DataError(source.missing(reason))


@contextmanager
def reading(source: Source, names: Sequence[str]) -> Iterator[None]:
    """What goes wrong inside is said of the first of these files that is there, or of their absence."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # transformers, safetensors, tokenizers and pickle each fail in ways of their own
        reason = short_reason(error)
        file = next((name for name in names if source.find(name) is not None), None)
        if file is None:
            raise DataError(source.missing(reason)) from None
        raise DataError(source.damaged(file, "; ".join([*examine_files(source.find)[0], reason]))) from None


def _load(source: Source, architectures: Sequence[str], answer_head: bool) -> Checkpoint:
    name, revision = source.name, source.revision
    with reading(source, [CONFIG]):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        kind = architecture_of(config.to_dict())
    if kind not in architectures:
        raise ConfigError(f"{source.said}: is a {kind}; expected {' or '.join(architectures)}")
    names = None
    if kind in LXMERT_ARCHITECTURES:
        kind, names = ("LxmertForQuestionAnswering" if answer_head else "LxmertModel"), _ORIGINAL_NAMES
    with reading(source, WEIGHTS):
        model, report = getattr(transformers, kind).from_pretrained(
            name,
            key_mapping=names,
            revision=revision,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, in one line instead of a table
        )
    left_out = _left_out(model)
    missing = [weight for weight in report["missing_keys"] if weight.partition(".")[0] not in left_out]
    check_weights(source, {**report, "missing_keys": missing})
    for child in left_out:
        delattr(model, child)  # it would be random, and go into the next export
    with reading(source, TOKENIZERS):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    vocab_size = getattr(config, "text_config", config).vocab_size
    if 2 * len(tokenizer) < vocab_size:
        # transformers 5 makes up a tokenizer of a few tokens where the files of one are missing
        raise DataError(source.missing(f"its tokenizer knows {len(tokenizer):,} tokens and the model {vocab_size:,}"))
    if isinstance(model, T5ForConditionalGeneration):
        name_start_token(model)
    return Checkpoint(model, tokenizer)


def _left_out(model: PreTrainedModel) -> tuple[str, ...]:
    """The children of a model that an export has left out, as its config.json says: nothing had trained them."""
    recorded = getattr(model.config, "left_out", ())
    return tuple(name for name, _ in model.named_children() if name in recorded)


def check_weights(source: Source, report: Mapping[str, Any]) -> None:
    place = source.place(next(name for name in WEIGHTS if source.find(name) is not None))
    if missing := sorted(report["missing_keys"]):
        some = f"{', '.join(missing[:3])} ({len(missing)} in all)"
        raise ConfigError(f"{source.said}: weights are missing: {some}, looked for in {place}; {source.again}")
    if differing := sorted(report["mismatched_keys"]):
        name, stored, expected = differing[0]
        sizes = f"{name}: {tuple(stored)} instead of {tuple(expected)} ({len(differing)} in all)"
        raise DataError(f"{source.said}: {place}: other sizes than {CONFIG} says: {sizes}; {source.again}")


@contextmanager
def without_reports() -> Iterator[None]:
    """Keep transformers from printing a table of what it found in a file: what is wrong is said here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
