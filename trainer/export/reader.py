"""The export of a reader of pages: its T5, and what it has beside it.

t5/                  T5 with page tokens in its vocabulary, if it was trained whole
lora_answer/         adapters of T5 in PEFT's format, where there are any
reader.safetensors   where words stand, page tokens of a frozen T5, and the page head
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.reader.build import BuiltReader
from model.reader.objective import TOWER, ReaderObjective
from model.towers.checkpoint_files import architecture_of
from model.towers.lora import save_adapters
from shards.errors import DataError
from trainer.config import RunConfig
from trainer.export.names import all_names, below
from trainer.export.t5 import T5, save_t5

READER = "reader.safetensors"
_LORA = f"lora_{TOWER}"


def write_reader(
    model: ModelConfig, built: BuiltReader, parameters: Mapping[str, Tensor], directory: Path
) -> dict[str, Any]:
    """Write what was trained; gives what `export.json` says of it.

    Args:
        parameters: full tensors by the objective's names.
    """
    objective, content = built.objective, {"parts": {}, "adapters": {}}
    weights = all_names(objective, parameters)
    own = {name: weights[name] for name, _ in _beside(objective)}
    if own:
        save_file(own, directory / READER)
    loaded = objective.tower.model
    if trained := below(weights, f"{TOWER}.model."):
        save_t5(loaded, built.answer_codec.tokenizer, trained, directory / T5)
        content["parts"] = {TOWER: T5}
    if objective.adapters:
        adapters, architecture = below(weights, f"lora.{TOWER}."), architecture_of(loaded.config.to_dict())
        save_adapters(adapters, model.lora.answer, built.reference, directory / _LORA, architecture=architecture)
        content["adapters"] = {TOWER: _LORA}
    return content


def load_beside(objective: ReaderObjective, directory: Path) -> None:
    """Read what an export has beside T5 into an objective.

    Raises:
        DataError: it is missing, damaged, or that of another recipe.
    """
    own, path = dict(_beside(objective)), directory / READER
    if not own:
        return
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not readable ({error})") from None
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in own.items()}:
        raise DataError(f"{path}: is not that of this recipe's reader section and losses; train the run again")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(found[name])


def reader_text(config: RunConfig, content: Mapping[str, Any]) -> str:
    """What the model card says of it.

    Args:
        content: of its `export.json`.
    """
    model, reader = config.model, config.reader
    lora = f"LoRA of rank {model.lora.answer.rank} on it" if model.lora.answer.rank else "frozen"
    how = lora if TOWER in model.freeze else "trained whole"
    merged = " and merged" if model.lora.answer.rank and not content["adapters"] else ""
    return (
        f"Hi-VT5 without pixels around {model.answer} ({how}{merged}), trained with DuoFlow:\n"
        f"{reader.page_tokens} tokens `[PAGE_0]`, `[PAGE_1]`, ... in front of each page stand for it, for at most\n"
        f"{reader.max_pages} pages of at most {reader.max_page_tokens} tokens. It reads words that an OCR found, in\n"
        "lower case."
    )


def _beside(objective: ReaderObjective) -> list[tuple[str, nn.Parameter]]:
    """What is trained and belongs neither to T5 nor to its adapters."""
    return [
        (name, parameter)
        for name, parameter in objective.named_parameters()
        if not name.startswith((f"{TOWER}.", "lora."))
    ]
