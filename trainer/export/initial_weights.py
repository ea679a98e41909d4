"""What a run starts from: `initialize_from`, the weights of another run; `answers.start_from`, a head over answers."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.build import BuiltModel
from model.config import AnswersConfig, Tower
from model.objective import Objective
from model.towers.answer_head import load_answer_head, read_answer_list, start_from
from shards.errors import ConfigError, DataError
from trainer.build import FUSION_FILE
from trainer.config.exported import EXPORT_FILE
from trainer.engine.state_file import MODEL, STATE, verify_checkpoint
from trainer.export.exported_weights import exported_weights


def initialize_from(objective: Objective, source: str) -> str:
    """Load weights, and nothing else, into the trained parts of an objective; says what was loaded.

    Args:
        source: a run directory (its best checkpoint, else its last), a checkpoint, or an export.

    Raises:
        ConfigError: nothing that holds weights, or weights of another model.
        DataError: the weights are damaged.
    """
    place = Path(source).expanduser()
    is_export = (place / EXPORT_FILE).is_file()
    own = dict(objective.named_parameters())
    if is_export:
        path, (weights, own) = place, exported_weights(place, objective)
    else:
        path = _weights_file(place)
        weights = _of_checkpoint(path)
        if path.name == FUSION_FILE:  # by itself
            weights, is_export = {f"fusion.{name}": value for name, value in weights.items()}, True
    wanted = {name for name in own if _part(name) in _parts(weights)}
    heads = {name for name in own if _part(name) == "heads"}
    if any(name not in weights or weights[name].shape != own[name].shape for name in heads):
        wanted -= heads  # those of another task
    # Adapters and heads may be new, and an export has trained towers as checkpoints that a recipe refers to; a tower
    # that a checkpoint does not have was not trained in its run.
    absent = _parts(own) - _parts(weights) - (_parts(own) - {"fusion"} if is_export else {"lora", "heads"})
    faults = [f"{part} is missing" for part in sorted(absent)]
    faults += ["it holds nothing that this model trains"] if weights and not wanted else []
    faults += [f"{name} is missing" for name in sorted(wanted - weights.keys())]
    faults += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in sorted(wanted & weights.keys())
        if weights[name].shape != own[name].shape
    ]
    if faults:
        raise ConfigError(
            f"initialize_from: {path}: {'; '.join(faults[:3])} ({len(faults)} faults); expected weights of the same "
            "model section; of an export, a recipe that leaves that section out takes it too"
        )
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(weights[name])
    towers = get_args(Tower) if is_export else ()
    return (
        f"weights of {len(wanted)} of {len(own)} trained tensors from {path}{_left_out(own, weights, wanted, towers)}"
    )


def start_answers(built: BuiltModel, answers: AnswersConfig) -> str:
    """Load `answers.start_from` into the class head of an objective; says what was found.

    Raises:
        ConfigError, DataError: there is no such head, its answers are not known, or it is of another width.
    """
    assert answers.start_from is not None, "asked for"
    known = None if answers.start_list is None else read_answer_list(Path(answers.start_list), "answers.start_list")
    head = load_answer_head(answers.start_from, known)
    found = start_from(built.objective.parts["classify"].part.head.layers, built.classes, head)
    return f"{found:,} of {len(built.classes):,} answers are among the {len(head.answers):,} of {answers.start_from}"


def _of_checkpoint(path: Path) -> dict[str, Tensor]:
    """The trained tensors of a checkpoint."""
    try:
        if (path.parent / STATE).is_file():
            verify_checkpoint(path.parent)
        return load_file(path)
    except DataError as error:
        raise DataError(f"initialize_from: {error}") from None
    except (OSError, SafetensorError) as error:
        raise DataError(f"initialize_from: {path}: not readable ({error})") from None


def _part(name: str) -> str:
    return name.partition(".")[0]


def _parts(names: Iterable[str]) -> set[str]:
    return {_part(name) for name in names}


def _left_out(own: Iterable[str], weights: Iterable[str], taken: Iterable[str], towers: Collection[str]) -> str:
    """What starts otherwise; `towers` come as checkpoints that the recipe refers to."""
    new, unused = sorted(_parts(own) - _parts(taken)), sorted(_parts(weights) - _parts(taken))
    named, new = [part for part in new if part in towers], [part for part in new if part not in towers]
    said = [f"{', '.join(named)} as the model section names them"] if named else []
    said += [f"{', '.join(new)} start as they are"] if new else []
    said += [f"{', '.join(unused)} of it is not used"] if unused else []
    return f"; {'; '.join(said)}" if said else ""


def _weights_file(source: Path) -> Path:
    candidates = [source / MODEL, source / FUSION_FILE]
    for pointer in ("best", "last"):
        file = source / "checkpoints" / pointer
        if file.is_file():
            candidates.append(source / "checkpoints" / file.read_text(encoding="utf-8").strip() / MODEL)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"initialize_from: {source}: no weights in it; expected a run directory with a checkpoint, a checkpoint or an "
        "export"
    )
