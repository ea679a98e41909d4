"""A copy of an export: adapters merged, frozen checkpoints inside, graphs of the fusion encoder, as asked for."""

import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import nn
from transformers import BlipConfig, PreTrainedModel

from model.config import ModelConfig
from model.reader.build import load_t5
from model.source import TowerSource, text_start_of
from model.towers.checkpoint_files import BLIP_ARCHITECTURES, T5_ARCHITECTURES, short_reason
from model.towers.hub import Checkpoint, load_pretrained
from model.vlm.objective import NAME
from shards.errors import ConfigError, DataError, UserError
from trainer.build import image_size
from trainer.config import RunConfig
from trainer.config.exported import EXPORT_FILE, MANIFEST, export_of, read_export, with_frozen
from trainer.export.card import write_card
from trainer.export.graph import GraphFormat, check_formats, write_graph
from trainer.export.hub import check_repository, prepare_repository, upload_command
from trainer.export.manifest import CARD, check_frozen, copy_frozen, seal, verified
from trainer.export.read import load_exported, read_run
from trainer.export.run_arguments import other_than_fusion
from trainer.export.vlm import write_merged
from trainer.export.write import ITM, T5, VQA
from trainer.run_directory import replace_directory, write_json

_ARCHITECTURES = (*BLIP_ARCHITECTURES, *T5_ARCHITECTURES)
_DIRECTORIES = {
    "BlipForQuestionAnswering": VQA,
    "BlipForImageTextRetrieval": ITM,
    "T5ForConditionalGeneration": T5,
}


class CopyRequest(NamedTuple):
    """What a copy is to have that the export has not."""

    merge: bool = False
    """The checkpoint that each adapter belongs to, with the adapter merged into its weights, in the adapter's place."""
    with_frozen: bool = False
    """The checkpoints that were not trained."""
    graphs: Sequence[GraphFormat] = ()
    """The fusion encoder for other runtimes."""
    license_id: str | None = None
    """As the hub names licenses; None says that those of its parts apply."""
    hub: str | None = None
    """The repository that it is to be: OWNER/NAME."""


def copy_export(run: Path, out: Path, *, merge: bool = False, request: CopyRequest | None = None) -> list[str]:
    """Copy the export of a run, or an export; `out` holds the whole copy or does not exist.

    Args:
        merge: `CopyRequest(merge=True)`.
        request: what else the copy has.

    Returns:
        A line for each part, to be shown.

    Raises:
        UserError: `out` exists or cannot be written, or a graph is not the fusion encoder.
        ConfigError, DataError: there is no export, it is not the one that was written, or a checkpoint behind it is
            missing.
    """
    asked, config, export = request or CopyRequest(merge=merge), read_run(run), export_of(run)
    _check(run, config, asked)
    content = read_export(export)
    manifest = verified(export, but=(CARD,))
    config = config.model_copy(update={"model": with_frozen(config.model, export, manifest)})
    if asked.with_frozen:
        _check_there(check_frozen(config, manifest))
    try:
        if out.exists():
            raise UserError(f"--out {out}: exists already; name a directory that is not there yet")
        out.parent.mkdir(parents=True, exist_ok=True)
        content, said = _copy(run, config, export, content, out, asked)
    except (OSError, SafetensorError) as error:  # of writing: what cannot be read is a DataError by now
        reason = error.strerror if isinstance(error, OSError) and error.strerror else short_reason(error)
        raise UserError(f"--out {out}: cannot be written ({reason}); free some space or name another place") from None
    fusion = [f"{out}: fusion encoder"] if other_than_fusion(config) is None else []
    parts = [f"{out / name}: {part}" for part, name in sorted(_lying(content))]
    upload = [f"upload it: {upload_command(asked.hub, out)}"] if asked.hub is not None else []
    return [*fusion, *parts, *(f"{out / line}" for line in said), *upload]


def _check(run: Path, config: RunConfig, asked: CopyRequest) -> None:
    """What is wrong with a request, before anything is read or written."""
    other = other_than_fusion(config)
    if asked.graphs and other is not None:
        raise ConfigError(f"--onnx, --torch-export: write a fusion encoder, and {run} is {other}; leave them out")
    check_formats(asked.graphs)
    if asked.hub is not None:
        check_repository(asked.hub)


def _check_there(absent: Sequence[str]) -> None:
    if absent:
        raise DataError(
            f"--with-frozen: {', '.join(absent)}: not on this machine; `duoflow doctor RECIPE` says how it is fetched"
        )


def _copy(
    run: Path, config: RunConfig, export: Path, content: dict[str, Any], out: Path, asked: CopyRequest
) -> tuple[dict[str, Any], list[str]]:
    """Copy aside, add there and rename; gives what the export.json of the copy says, and lines of what was added."""
    aside, manifest = out.with_name(f".{out.name}.partial"), verified(export, but=(CARD,))
    shutil.rmtree(aside, ignore_errors=True)
    said: list[str] = []
    try:
        for name in (*manifest.files, MANIFEST):  # predictions that lie beside them are not the export's
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(export / name, aside / name)
        if asked.merge:
            content = _merge(config, content, aside)
            manifest = manifest._replace(
                frozen={
                    key: entry
                    for key, entry in manifest.frozen.items()
                    if key.removeprefix("model.") not in content["parts"]
                }
            )
        if asked.with_frozen:
            manifest = copy_frozen(config, manifest, aside, lambda key, place: _save_timm(config.model, key, place))
            said += [f"{entry.inside}: {entry.reference}" for entry in manifest.frozen.values()]
        said += _write_graphs(run, config, asked.graphs, aside)
        if asked != CopyRequest():
            write_card(config, aside, asked.license_id)
        if asked.hub is not None:
            prepare_repository(aside)
        seal(aside, manifest.frozen)
        replace_directory(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return content, said


def _write_graphs(run: Path, config: RunConfig, formats: Sequence[GraphFormat], aside: Path) -> list[str]:
    if not formats:
        return []
    exported = load_exported(run, config.model_copy(update={"precision": "fp32"}), device=torch.device("cpu"))
    size = image_size(exported.config, exported.built)
    if size is None:
        raise ConfigError(
            f"--onnx, --torch-export: {run} reads regions, of which there is no fixed number; leave them out"
        )
    written = [write_graph(exported.built.objective, size, form, aside) for form in formats]
    return [f"{graph.file}: differs from the module by {graph.difference:.1e} at most" for graph in written]


def _save_timm(model: ModelConfig, key: str, directory: Path) -> None:
    source = TowerSource(model, lambda: None)
    tower = source.vision() if key == "model.vision" else source.second_stream().tower
    tower.save(dict(tower.module.named_parameters()), directory)


def _lying(content: dict[str, Any]) -> set[tuple[str, str]]:
    """What the export has besides the fusion encoder: (part, its file or directory)."""
    adapters = {(f"LoRA on {part}", name) for part, name in content["adapters"].items()}
    return set(content["parts"].items()) | adapters


def _merge(config: RunConfig, content: dict[str, Any], aside: Path) -> dict[str, Any]:
    """Put checkpoints in the place of the adapters of a copy; gives what its export.json says then."""
    parts, model = dict(content["parts"]), config.model
    for part, name in content["adapters"].items():
        if part == NAME:
            assert model.vlm is not None, "whose adapter it is"
            write_merged(model.vlm, aside / name, aside / NAME)
            shutil.rmtree(aside / name)
            parts[part] = NAME
            continue
        checkpoint = _under_adapters(config, part)
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


def _under_adapters(config: RunConfig, part: str) -> Checkpoint:
    """The checkpoint that adapters belong to; that of a reader has page tokens in its vocabulary."""
    if config.model.reader is not None:
        return load_t5(config.model.answer, config.reader.page_tokens, seed=config.run.seed)[0]
    return load_pretrained(getattr(config.model, part), _ARCHITECTURES)


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
