"""A copy of an export, in which adapters can be merged into the checkpoints that they adapt."""

import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import nn
from transformers import BlipConfig, PreTrainedModel

from model.config import ModelConfig
from model.source import text_start_of
from model.towers.checkpoint_files import BLIP_ARCHITECTURES, T5_ARCHITECTURES, short_reason
from model.towers.hub import load_pretrained
from model.vlm.objective import NAME
from shards.errors import DataError, UserError
from trainer.export.read import read_run
from trainer.export.run_arguments import other_than_fusion
from trainer.export.vlm import write_merged
from trainer.export.write import EXPORT_FILE, ITM, T5, VQA, read_export
from trainer.run_directory import RunDirectory, replace_directory, write_json

_ARCHITECTURES = (*BLIP_ARCHITECTURES, *T5_ARCHITECTURES)
_DIRECTORIES = {
    "BlipForQuestionAnswering": VQA,
    "BlipForImageTextRetrieval": ITM,
    "T5ForConditionalGeneration": T5,
}


def copy_export(run: Path, out: Path, *, merge: bool) -> list[str]:
    """Copy the export of a run; `out` holds the whole copy or does not exist.

    Args:
        merge: write the checkpoint that each adapter belongs to, with the adapter merged into its weights, in the
            adapter's place.

    Returns:
        A line for each part, to be shown.

    Raises:
        UserError: `out` exists or cannot be written.
        ConfigError, DataError: there is no export, or a checkpoint behind an adapter is missing.
    """
    config, export = read_run(run), RunDirectory(run).export
    content = read_export(export)
    try:
        if out.exists():
            raise UserError(f"--out {out}: exists already; name a directory that is not there yet")
        out.parent.mkdir(parents=True, exist_ok=True)
        content = _copy(config.model, export, content, out, merge=merge)
    except (OSError, SafetensorError) as error:  # of writing: what cannot be read is a DataError by now
        # copytree goes on after a file that fails and tells of all at its end: (from, to, message).
        reason = error.args[0][0][2].partition(": ")[0] if isinstance(error, shutil.Error) else short_reason(error)
        raise UserError(f"--out {out}: cannot be written ({reason}); free some space or name another place") from None
    fusion = [f"{out}: fusion encoder"] if other_than_fusion(config) is None else []
    return [*fusion, *(f"{out / name}: {part}" for part, name in sorted(_lying(content)))]


def _copy(model: ModelConfig, export: Path, content: dict[str, Any], out: Path, *, merge: bool) -> dict[str, Any]:
    """Copy aside, merge there and rename; gives what the export.json of the copy says."""
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(export, aside)
        if merge:
            content = _merge(model, content, aside)
        replace_directory(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return content


def _lying(content: dict[str, Any]) -> set[tuple[str, str]]:
    """What the export has besides the fusion encoder: (part, its file or directory)."""
    adapters = {(f"LoRA on {part}", name) for part, name in content["adapters"].items()}
    return set(content["parts"].items()) | adapters


def _merge(model: ModelConfig, content: dict[str, Any], aside: Path) -> dict[str, Any]:
    """Put checkpoints in the place of the adapters of a copy; gives what its export.json says then."""
    parts = dict(content["parts"])
    for part, name in content["adapters"].items():
        if part == NAME:
            assert model.vlm is not None, "whose adapter it is"
            write_merged(model.vlm, aside / name, aside / NAME)
            shutil.rmtree(aside / name)
            parts[part] = NAME
            continue
        checkpoint = load_pretrained(getattr(model, part), _ARCHITECTURES)
        directory = aside / _DIRECTORIES[type(checkpoint.model).__name__]
        if directory.exists():  # it has the trained vision tower, and the rest as the adapters found it
            checkpoint = load_pretrained(str(directory.absolute()), _ARCHITECTURES)
            shutil.rmtree(directory)
        merged = _merged(checkpoint.model, aside / name, getattr(model, part))
        if isinstance(merged.config, BlipConfig):
            merged.config.text_start = text_start_of(model, getattr(model, part), merged.config)
        merged.save_pretrained(directory)
        checkpoint.tokenizer.save_pretrained(directory)
        shutil.rmtree(aside / name)
        parts[part] = directory.name
    merged_content = {**content, "parts": parts, "adapters": {}}
    write_json(aside / EXPORT_FILE, merged_content)
    return merged_content


def _merged(model: PreTrainedModel, adapters: Path, reference: str) -> PreTrainedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT's, of adapted weights that are shared: they are untied here
        try:
            adapted = PeftModel.from_pretrained(model, adapters)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            reason = short_reason(error)
            raise DataError(f"{adapters.name}: adapters that do not load into {reference} ({reason})") from None
        _untie_adapted(adapted)
        return adapted.merge_and_unload()


def _untie_adapted(model: nn.Module) -> None:
    """Give adapted layers weights of their own.

    Merged into T5's or BLIP's output layer where that shares its weights, an adapter would change the embeddings too.
    """
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            if uses[id(base.weight)] > 1:
                base.weight = nn.Parameter(base.weight.detach().clone())
