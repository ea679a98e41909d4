"""What an export holds, under the names that an objective has for its parameters: what a new run starts from."""

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model.objective import Objective
from model.reader.objective import TOWER, ReaderObjective
from model.retrieval.checkpoint import load_checkpoint
from model.retrieval.objective import RetrievalObjective
from model.towers.checkpoint_files import T5_ARCHITECTURES
from model.towers.hub import load_pretrained
from model.towers.lora import WEIGHTS, plain_names
from shards.errors import DataError
from trainer.build import FUSION_FILE
from trainer.config.exported import read_export
from trainer.export.card import HEADS
from trainer.export.manifest import verified
from trainer.export.reader import READER
from trainer.export.retrieval import OFFSET, RETRIEVAL

Named = dict[str, Tensor]


def exported_weights(export: Path, objective: Objective) -> tuple[Named, Named]:
    """What an export holds, and what of an objective it can go into, both by the objective's names.

    Towers of a fusion are not among it: a recipe refers to them where the export has them. A retrieval is exported
    whole, with its adapters merged: it goes into frozen towers, too, and adapters start anew.

    Raises:
        DataError: the export is not whole, or damaged.
    """
    own: Named = dict(objective.named_parameters())
    try:
        verified(export)
        content = read_export(export)
        if isinstance(objective, RetrievalObjective):
            return _of_retrieval(export, objective, own)
        weights: Named = {}
        if isinstance(objective, ReaderObjective) and TOWER in content["parts"]:
            t5 = load_pretrained(str((export / content["parts"][TOWER]).absolute()), T5_ARCHITECTURES).model
            weights |= {f"{TOWER}.model.{name}": value for name, value in _all(t5)}
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


def _of_retrieval(export: Path, objective: RetrievalObjective, own: Named) -> tuple[Named, Named]:
    found = load_checkpoint(str(export / RETRIEVAL))
    weights = {f"{name}.{key}": value for name, tower in found.towers._asdict().items() for key, value in _all(tower)}
    for name in found.towers._fields:
        own |= {f"{name}.{_plain(key)}": value for key, value in _all(objective.tower(name)) if "lora_" not in key}
    if objective.temperature is not None:
        weights[OFFSET] = (found.model.logit_scale.detach() - objective.temperature.start).reshape(own[OFFSET].shape)
    return weights, own


def _all(tower: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return tower.named_parameters(remove_duplicate=False)


def _plain(name: str) -> str:
    """The name that a parameter had before its layer was adapted."""
    return name.replace(".base_layer.", ".")
