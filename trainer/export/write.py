"""The export of a run: its trained parts as files that load without DuoFlow's checkpoints, and all that goes with them.

fusion_encoder.safetensors   grid token, adapters and fusion encoder
blip_vqa/, blip_itm/         BLIP in Hugging Face format with its tokenizer, where any of its parts was trained
lxmert/                      LXMERT in Hugging Face format with its tokenizer, if any of it was trained
t5/                          T5 with its tokenizer, if it was trained whole
lora_match/, lora_answer/    adapters in PEFT's format, where there are any
blip_vision/                 BLIP's vision tower, if it was trained and fits into neither of these
blip_second/                 the second BLIP's vision tower, if it was trained
timm_vision/, timm_second/   a backbone of timm, if it was trained, as timm.models.save_for_hf writes it
efficient_sam.safetensors    the second vision tower, if it was trained, under its official key names
lora_vlm/                    the adapter of a vision-language model, which is then all that there is but for its head
reader.safetensors           what a reader of pages has beside t5/ or lora_answer/, which is then all that there is
retrieval/                   CLIP or SigLIP of a page retrieval, which is then all that there is
heads.safetensors            heads that parts of the loss have of their own, where there are any
export.json                  which part lies where, and the step and metrics that the weights belong to
config.yaml                  the recipe, completely
tokenizers/, processor/      of what is not in the export itself
preprocessing.json           what pictures and texts have to become
README.md, LICENSE           model card, and whose terms apply
manifest.json                see trainer/export/manifest.py
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipForQuestionAnswering, PreTrainedModel

from model.build import BuiltModel
from model.config import ModelConfig
from model.efficient_sam.encoder import EfficientSamEncoder
from model.efficient_sam.weights import save_efficient_sam_encoder
from model.fusion_objective import FusionObjective
from model.objective import Objective
from model.reader.build import BuiltReader
from model.retrieval.build import BuiltRetrieval
from model.towers.answer_towers import T5AnswerTower
from model.towers.checkpoint_files import architecture_of
from model.towers.lora import load_adapters, save_adapters, without_adapters
from model.towers.timm_backbone import TimmVisionTower
from model.vlm.build import BuiltVlm
from model.vlm.objective import NAME
from shards.errors import DataError
from trainer.build import FUSION_FILE, AnyBuilt
from trainer.config import RunConfig, dump_config
from trainer.config.exported import EXPORT_FILE, RECIPE, read_export, with_parts
from trainer.export.card import HEADS, write_card
from trainer.export.manifest import frozen_behind, seal
from trainer.export.names import all_names, below
from trainer.export.preprocessing import write_preprocessing
from trainer.export.reader import write_reader
from trainer.export.retrieval import RETRIEVAL, write_checkpoint
from trainer.export.t5 import T5, save_t5
from trainer.export.vlm import LORA, write_adapter
from trainer.run_directory import replace_directory, write_json

VQA, ITM, VISION, SECOND_BLIP = "blip_vqa", "blip_itm", "blip_vision", "blip_second"
TIMM_VISION, TIMM_SECOND, LXMERT = "timm_vision", "timm_second", "lxmert"
SECOND_STREAM = "efficient_sam.safetensors"


def export_model(
    config: RunConfig,
    built: AnyBuilt,
    parameters: Mapping[str, Tensor],
    directory: Path,
    *,
    step: int,
    metrics: Mapping[str, float],
) -> None:
    """Write the trained parts, aside and then renamed, so that `directory` holds the old export or this one.

    Args:
        parameters: full fp32 tensors by the objective's parameter names, as a checkpoint has them.
        step: optimizer steps taken when they were saved.
        metrics: of the validation of that step, for the model card.

    Raises:
        OSError: the disk is full or fails.
    """
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if isinstance(built, BuiltVlm):
        write_adapter(built, parameters, aside)
        _write_heads(all_names(built.objective, parameters), aside)
        content: dict[str, Any] = {"parts": {}, "adapters": {NAME: LORA}}
    elif isinstance(built, BuiltReader):
        content = write_reader(config.model, built, parameters, aside)
    elif isinstance(built, BuiltRetrieval):
        write_checkpoint(built, parameters, aside / RETRIEVAL)
        content = {"parts": {RETRIEVAL: RETRIEVAL}, "adapters": {}}
    else:
        content = _write_fusion(config, built, parameters, aside)
    known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
    content |= {"step": step, "metrics": known}
    if built.classes:
        content["classes"] = list(built.classes)
    write_json(aside / EXPORT_FILE, content)
    (aside / RECIPE).write_text(dump_config(config), encoding="utf-8")
    write_preprocessing(config, built, content["parts"], aside)
    write_card(config, aside)
    seal(aside, frozen_behind(config, content["parts"]))
    replace_directory(aside, directory)


def _write_fusion(
    config: RunConfig, built: BuiltModel, parameters: Mapping[str, Tensor], aside: Path
) -> dict[str, Any]:
    """Write the trained parts; gives what `export.json` says of them."""
    weights = all_names(built.objective, parameters)
    save_file(below(weights, "fusion."), aside / FUSION_FILE)
    parts = _export_towers(config.model, built, weights, aside) | _export_second(config.model, built, weights, aside)
    _write_heads(weights, aside)
    return {"parts": parts, "adapters": _export_adapters(config.model, built, weights, aside)}


def _write_heads(weights: Mapping[str, Tensor], aside: Path) -> None:
    if heads := below(weights, "heads."):
        save_file(heads, aside / HEADS)


def exported_model_config(config: ModelConfig, directory: Path) -> ModelConfig:
    """The model section with the references of trained parts pointing into the export."""
    return with_parts(config, directory, read_export(directory))


def load_fusion(objective: FusionObjective, directory: Path) -> None:
    """Read the exported fusion encoder into an objective.

    Raises:
        DataError: it is missing, damaged, or that of another recipe.
    """
    path = directory / FUSION_FILE
    try:
        objective.fusion.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: does not load into this recipe's fusion encoder ({reason})") from None


def load_heads(objective: Objective, directory: Path) -> None:
    """Read the exported heads into an objective, where it has any.

    Raises:
        DataError: they are missing, damaged, or those of another recipe.
    """
    heads = getattr(objective, "heads", None)
    if heads is None:
        return
    path = directory / HEADS
    try:
        heads.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: does not load into this recipe's heads ({reason})") from None


def exported_classes(directory: Path) -> tuple[str, ...]:
    """What the class head of an export names, and a ranking chooses from."""
    return tuple(read_export(directory).get("classes", ()))


def load_exported_adapters(objective: Objective, directory: Path) -> None:
    """Read the exported adapters into an objective that was built with them.

    Raises:
        DataError: some are missing, damaged, or those of another recipe.
    """
    there = read_export(directory)["adapters"]
    for part, leaves in objective.adapters.items():
        if part in there:  # merged ones are in the checkpoint, and those of the recipe start at zero
            load_adapters(leaves, directory / adapter_directory(part))


def adapter_directory(part: str) -> str:
    """Where the export has the adapters of a part."""
    return f"lora_{part}"


def _export_towers(model: ModelConfig, built: BuiltModel, weights: Mapping[str, Tensor], aside: Path) -> dict[str, str]:
    """Write the checkpoints that hold trained parts; returns where each trained part lies.

    A trained vision tower goes into every checkpoint that has one of its sizes, so that each can be used alone.
    """
    trained = {name.partition(".")[0] for name in weights} & {"vision", "match", "answer"}
    if built.objective.sight.medium == "regions":
        if not trained:
            return {}
        _save_lxmert(built, model.vision, below(weights, "vision.") | below(weights, "match."), aside / LXMERT)
        return dict.fromkeys(("match", "vision"), LXMERT)  # both, trained or not: one checkpoint is named in both
    answer, match, vision = *map(built.objective.tower, ("answer", "match")), below(weights, "vision.")
    parts: dict[str, str] = {}
    if isinstance(answer, T5AnswerTower):
        if "answer" in trained:
            save_t5(answer.model, built.source.tokenizer(model.answer), below(weights, "answer.model."), aside / T5)
            parts["answer"] = T5
    elif answer is not None and (changed := trained & {"answer", *_vision_in(built, model.answer)}):
        _save_blip(BlipForQuestionAnswering, built, model.answer, "answer", vision, weights, aside / VQA)
        parts |= dict.fromkeys(sorted(changed), VQA)
    if match is not None and (changed := trained & {"match", *_vision_in(built, model.match)}):
        _save_blip(BlipForImageTextRetrieval, built, model.match, "match", vision, weights, aside / ITM)
        parts |= {part: ITM for part in sorted(changed) if part not in parts}
    sight = built.objective.sight
    if "vision" in trained and isinstance(sight, TimmVisionTower):
        sight.save(vision, aside / TIMM_VISION)
        parts["vision"] = TIMM_VISION
    elif "vision" in trained - parts.keys():
        _save_blip(BlipForImageTextRetrieval, built, model.vision, None, vision, weights, aside / VISION)
        parts["vision"] = VISION
    return parts


def _vision_in(built: BuiltModel, reference: str) -> set[str]:
    """{"vision"} if a checkpoint has a vision tower of the sizes of the one in use: a ViT-L may feed a base BERT."""
    shapes = [
        {name: value.shape for name, value in tower.state_dict().items()}
        for tower in (built.source.vision_of(reference), built.objective.tower("vision"))
    ]
    return {"vision"} if shapes[0] == shapes[1] else set()


def _export_second(model: ModelConfig, built: BuiltModel, weights: Mapping[str, Tensor], aside: Path) -> dict[str, str]:
    """Write the second vision tower, if it was trained; returns where it lies."""
    trained = below(weights, "second_stream.encoder.")
    if not trained:
        return {}
    if model.second_stream == "timm":
        built.objective.tower("second_stream").tower.save(trained, aside / TIMM_SECOND)
        return {"second_stream": TIMM_SECOND}
    if model.second_stream == "blip":
        _save_blip(BlipForImageTextRetrieval, built, model.second_vision, None, trained, {}, aside / SECOND_BLIP)
        return {"second_stream": SECOND_BLIP}
    encoder = EfficientSamEncoder(built.objective.tower("second_stream").encoder.config)
    encoder.load_state_dict(trained, strict=True)
    save_efficient_sam_encoder(encoder, aside / SECOND_STREAM)
    return {"second_stream": SECOND_STREAM}


def _save_lxmert(built: BuiltModel, reference: str, weights: Mapping[str, Tensor], directory: Path) -> None:
    """A whole LXMERT without heads: trained tensors, and the others, dead ones among them, as they were loaded."""
    loaded = built.source.unrounded(reference).lxmert()
    with torch.device("meta"):
        model = type(loaded)(type(loaded.config).from_dict(loaded.config.to_dict()))
    others = {name: value.float().cpu() for name, value in loaded.state_dict().items() if name not in weights}
    model.load_state_dict({**others, **weights}, strict=True, assign=True)
    model.save_pretrained(directory)
    built.source.tokenizer(reference).save_pretrained(directory)


def _export_adapters(
    model: ModelConfig, built: BuiltModel, weights: Mapping[str, Tensor], aside: Path
) -> dict[str, str]:
    for part in built.objective.adapters:
        reference = getattr(model, part)
        save_adapters(
            below(weights, f"lora.{part}."),
            getattr(model.lora, part),
            reference,
            aside / adapter_directory(part),
            architecture=architecture_of(built.source.blip_config(reference).to_dict()),
        )
    return {part: adapter_directory(part) for part in built.objective.adapters}


def _save_blip(
    architecture: type[PreTrainedModel],
    built: BuiltModel,
    reference: str,
    tower: Literal["match", "answer"] | None,
    vision: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    directory: Path,
) -> None:
    """A BLIP model: trained parts from `vision` and `weights`, others as they were loaded, in full precision.

    What was neither is left out, and its config.json says so: it would be random.
    """
    model = architecture(BlipConfig.from_dict(built.source.blip_config(reference).to_dict()))
    model.config.text_start = built.source.text_start(reference)
    source = built.source.unrounded(reference)
    loaded = dict(source.named_parts(reference))
    if not _vision_in(built, reference):
        _copy_into(model.vision_model, loaded["vision_model"])
    elif vision:
        model.vision_model.load_state_dict(vision, strict=True, assign=True)
    else:
        _copy_into(model.vision_model, _vision_as_loaded(built))
    children = dict(built.objective.tower(tower).named_children()) if tower is not None else {}
    for name, child in children.items():
        trained = below(weights, f"{tower}.{name}.")
        if trained:
            getattr(model, name).load_state_dict(trained, strict=True, assign=True)  # not copied: see save_t5
        else:
            _copy_into(getattr(model, name), loaded.get(name, child))
    given = {"vision_model", *children}
    if tower is not None:
        for name, unused in loaded.items():
            if name not in given and hasattr(model, name):
                _copy_into(getattr(model, name), unused)
                given.add(name)
    if left_out := [name for name, _ in model.named_children() if name not in given]:
        model.config.left_out = left_out
    state = {name: value for name, value in model.state_dict().items() if name.partition(".")[0] in given}
    model.save_pretrained(directory, state_dict=state)
    built.source.tokenizer(reference).save_pretrained(directory)


def _vision_as_loaded(built: BuiltModel) -> nn.Module:
    """The first vision tower, which is frozen; the recipe may have it from another checkpoint than the rest."""
    reference = built.source.config.vision
    source = built.source.unrounded(reference)
    return built.objective.tower("vision") if source is built.source else source.vision().module


@torch.no_grad()
def _copy_into(target: nn.Module, tower: nn.Module) -> None:
    """Have `target` share the weights of a tower, without the adapters in it."""
    state = {name: value.float().cpu() for name, value in without_adapters(tower.state_dict()).items()}
    target.load_state_dict(state, strict=True, assign=True)
