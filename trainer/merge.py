"""A copy of an export, in which adapters can be merged into the checkpoints that they adapt."""

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel

from model.config import ModelConfig
from model.hub import BLIP_ARCHITECTURES, T5_ARCHITECTURES, load_pretrained
from shards.errors import UserError
from trainer.export import EXPORT_FILE, ITM, T5, VQA, read_export, replace_directory
from trainer.exported import read_run
from trainer.run_directory import RunDirectory, write_json

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
        UserError: `out` exists.
        ConfigError, DataError: there is no export, or a checkpoint behind an adapter is missing.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists already; name a directory that is not there yet")
    config, export = read_run(run), RunDirectory(run).export
    content = read_export(export)
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(export, aside)
        if merge:
            content = _merge(config.model, content, aside)
        replace_directory(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return [f"{out}: fusion encoder", *(f"{out / name}: {part}" for part, name in sorted(_lying(content)))]


def _lying(content: dict[str, Any]) -> set[tuple[str, str]]:
    """What the export has besides the fusion encoder: (part, its file or directory)."""
    adapters = {(f"LoRA on {part}", name) for part, name in content["adapters"].items()}
    return set(content["parts"].items()) | adapters


def _merge(model: ModelConfig, content: dict[str, Any], aside: Path) -> dict[str, Any]:
    """Put checkpoints in the place of the adapters of a copy; gives what its export.json says then."""
    parts = dict(content["parts"])
    for part, name in content["adapters"].items():
        checkpoint = load_pretrained(getattr(model, part), _ARCHITECTURES)
        directory = aside / _DIRECTORIES[type(checkpoint.model).__name__]
        if directory.exists():  # it has the trained vision tower, and the rest as the adapters found it
            checkpoint = load_pretrained(str(directory.absolute()), _ARCHITECTURES)
            shutil.rmtree(directory)
        merged = PeftModel.from_pretrained(checkpoint.model, aside / name).merge_and_unload()
        merged.save_pretrained(directory)
        checkpoint.tokenizer.save_pretrained(directory)
        shutil.rmtree(aside / name)
        parts[part] = directory.name
    merged_content = {**content, "parts": parts, "adapters": {}}
    write_json(aside / EXPORT_FILE, merged_content)
    return merged_content
