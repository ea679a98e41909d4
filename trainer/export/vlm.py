"""The export of a vision-language model: its adapter in PEFT's format, and how it becomes a plain checkpoint.

lora_vlm/     adapter_model.safetensors, adapter_config.json: what `PeftModel.from_pretrained` loads
vlm/          in a copy with merged adapters: the whole checkpoint with its processor, as save_pretrained writes it
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor

from model.towers.checkpoint_files import short_reason
from model.vlm.adapters import save_vlm_adapters
from model.vlm.build import BuiltVlm
from model.vlm.checkpoint import load_checkpoint
from model.vlm.objective import NAME
from shards.errors import DataError
from trainer.config import RunConfig

LORA = f"lora_{NAME}"


def write_adapter(built: BuiltVlm, parameters: Mapping[str, Tensor], directory: Path) -> None:
    """Write the adapter of an objective below `directory`.

    Args:
        parameters: full tensors by the objective's names.
    """
    prefix = f"lora.{NAME}."
    weights = {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
    save_vlm_adapters(built.objective.model, built.config, weights, built.reference, directory / LORA)


def write_merged(reference: str, adapter: Path, directory: Path) -> None:
    """The checkpoint of a reference with an adapter merged into its weights, in their own dtype, and its processor.

    Raises:
        DataError: the checkpoint is missing, or the adapter is that of another.
    """
    loaded = load_checkpoint(reference)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # PEFT's, of names that it expects elsewhere
            merged = PeftModel.from_pretrained(loaded.model, adapter).merge_and_unload()
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = short_reason(error)
        raise DataError(f"{adapter.name}: an adapter that does not load into {reference} ({reason})") from None
    merged.save_pretrained(directory)
    loaded.processor.save_pretrained(directory)


def vlm_text(config: RunConfig) -> str:
    """What the model card says of it."""
    vlm = config.vlm
    sides = ", ".join(f"{side} {part.rank}" for side in ("language", "vision") if (part := getattr(vlm, side)).rank)
    return (
        f"LoRA (ranks: {sides}) on {config.model.vlm}, trained with DuoFlow, questions `{vlm.questions}`.\n"
        f'`PeftModel.from_pretrained(model, "{LORA}")` loads an adapter; `duoflow export DIR --out OTHER --merge`\n'
        "writes a whole checkpoint."
    )
