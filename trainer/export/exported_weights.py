"""What an export holds, under the names that an objective has for its parameters: what a new run starts from."""

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.objective import Objective
from model.retrieval.checkpoint import load_checkpoint
from model.retrieval.objective import RetrievalObjective
from model.source import TowerSource
from model.towers.checkpoint_files import T5_ARCHITECTURES
from model.towers.hub import load_pretrained
from model.towers.lora import WEIGHTS, plain_names
from shards.errors import DataError
from trainer.build import FUSION_FILE
from trainer.config import load_run_config
from trainer.config.exported import RECIPE, model_in, read_export
from trainer.export.card import HEADS
from trainer.export.manifest import verified
from trainer.export.reader import READER
from trainer.export.retrieval import OFFSET, RETRIEVAL

Named = dict[str, Tensor]


def exported_weights(export: Path, objective: Objective) -> tuple[Named, Named]:
    """What an export holds, and what of an objective it can go into, both by the objective's names.

    A retrieval is exported whole, with its adapters merged: it goes into frozen towers, too, and adapters start anew.

    Raises:
        DataError: the export is not whole, or damaged.
    """
    own: Named = dict(objective.named_parameters())
    try:
        verified(export)
        content = read_export(export)
        model = model_in(load_run_config(export / RECIPE).model, export)
        if isinstance(objective, RetrievalObjective):
            return _of_retrieval(export, objective, own)
        weights = dict(_of_towers(model, content["parts"]))
        for name, prefix in ((FUSION_FILE, "fusion."), (HEADS, "heads."), (READER, "")):
            if (export / name).is_file():
                weights |= {f"{prefix}{key}": value for key, value in load_file(export / name).items()}
        for part, name in content["adapters"].items():
            adapters = plain_names(load_file(export / name / WEIGHTS))
            weights |= {f"lora.{part}.{key}": value for key, value in adapters.items()}
        return weights, own
    except DataError as error:
        raise DataError(f"initialize_from: {error}") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"initialize_from: {export}: not readable ({error})") from None


def _of_towers(model: ModelConfig, parts: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The parameters of trained towers, under every name that they have."""
    if model.vlm is not None or model.retrieval is not None:
        return
    if model.reader is not None:
        t5 = load_pretrained(model.answer, T5_ARCHITECTURES).model if "answer" in parts else None
        if t5 is not None:
            yield from _named("answer.model", t5)
        return
    source = TowerSource(model, _no_tokenizer)
    for part in parts:
        yield from _named(part, _tower(source, model, part))


def _tower(source: TowerSource, model: ModelConfig, part: str) -> nn.Module:
    if part == "vision":
        return source.vision().module
    if part == "second_stream":
        return source.second_stream()
    if part == "match":
        return source.match(with_head=not source.is_lxmert(model.match) and source.has_part(model.match, "itm_head"))
    return source.answer(with_decoder=source.has_part(model.answer, "text_decoder"))


def _of_retrieval(export: Path, objective: RetrievalObjective, own: Named) -> tuple[Named, Named]:
    found = load_checkpoint(str(export / RETRIEVAL))
    weights = {f"{name}.{key}": value for name, tower in found.towers._asdict().items() for key, value in _all(tower)}
    for name in found.towers._fields:
        own |= {f"{name}.{_plain(key)}": value for key, value in _all(objective.tower(name)) if "lora_" not in key}
    if objective.temperature is not None:
        weights[OFFSET] = (found.model.logit_scale.detach() - objective.temperature.start).reshape(own[OFFSET].shape)
    return weights, own


def _named(part: str, tower: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((f"{part}.{key}", value) for key, value in _all(tower))


def _all(tower: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return tower.named_parameters(remove_duplicate=False)


def _plain(name: str) -> str:
    """The name that a parameter had before its layer was adapted."""
    return name.replace(".base_layer.", ".")


def _no_tokenizer() -> None:
    raise DataError("a part of the recipe is `scratch` and was not exported; export the run again")
