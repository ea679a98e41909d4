"""LoRA in a vision-language model: which linear layers of its language and of its vision side, in one PEFT adapter."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from model.config import ALL_LINEAR, LoraConfig, VlmConfig
from model.towers.lora import leaves_of, write_adapter
from shards.errors import ConfigError

Side = Literal["language", "vision"]

_LANGUAGE = ("language_model", "text_model")
"""What transformers calls the language model of a vision-language model."""


def linear_layers(model: PreTrainedModel) -> dict[Side, list[str]]:
    """The paths of the linear layers of each side; the head over the vocabulary is in neither."""
    head = model.get_output_embeddings()
    found: dict[Side, list[str]] = {"language": [], "vision": []}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            side: Side = "language" if set(_LANGUAGE) & set(path.split(".")) else "vision"
            found[side].append(path)
    unused = _unused_layers(model)
    found["vision"] = [path for path in found["vision"] if not path.startswith(unused)]
    return found


def chosen_layers(model: PreTrainedModel, config: VlmConfig) -> dict[Side, list[str]]:
    """The paths of the layers that a recipe adapts, by side.

    Raises:
        ConfigError: one of its names is that of no linear layer; the message has the nearest.
    """
    layers = linear_layers(model)
    return {side: list(_chosen(layers[side], section, side)) for side, section in _sections(config)}


def add_adapters(model: PreTrainedModel, config: VlmConfig) -> nn.Module:
    """Put adapters into a model; its own weights stay as they are.

    Returns:
        The trained leaf modules, under the paths that their layers have in `model`.

    Raises:
        ConfigError: see `chosen_layers`.
    """
    inject_adapter_in_model(peft_config(config, chosen_layers(model, config)), model)
    return leaves_of(model)


def peft_config(config: VlmConfig, layers: dict[Side, list[str]], **base: Any) -> PeftLoraConfig:
    """One adapter for both sides; what the vision side has of its own stands by layer."""
    sections = dict(_sections(config))
    first = sections.get("language") or sections["vision"]
    own = [(path, sections[side]) for side, paths in layers.items() for path in paths if sections[side] != first]
    return PeftLoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,
        lora_dropout=first.dropout,
        target_modules=[path for paths in layers.values() for path in paths],
        rank_pattern={path: section.rank for path, section in own},
        alpha_pattern={path: section.alpha for path, section in own},
        **base,
    )


def save_vlm_adapters(model: PreTrainedModel, config: VlmConfig, weights: dict, base: str, directory: Path) -> None:
    """Write the adapter in PEFT's format.

    Args:
        weights: full tensors by the names that they have below the leaves.
        base: reference of the model.
    """
    paths = {name.rpartition(".lora_")[0] for name in weights}
    layers = {side: [path for path in found if path in paths] for side, found in _adapted(model).items()}
    made = peft_config(config, {side: layers[side] for side, _ in _sections(config)})
    write_adapter(made, weights, base, directory, architecture=type(model).__name__)


def _adapted(model: PreTrainedModel) -> dict[Side, list[str]]:
    """The paths of adapted layers: PEFT keeps the layer itself one name deeper."""
    return {
        side: [path.removesuffix(".base_layer") for path in paths if path.endswith(".base_layer")]
        for side, paths in linear_layers(model).items()
    }


def _sections(config: VlmConfig) -> Iterator[tuple[Side, LoraConfig]]:
    for side in ("language", "vision"):
        section = getattr(config, side)
        if section.rank:
            yield side, section


def _chosen(paths: Sequence[str], section: LoraConfig, side: Side) -> Iterator[str]:
    if ALL_LINEAR in section.targets:
        yield from paths
        return
    missing = [name for name in section.targets if not any(_ends(path, name) for path in paths)]
    if missing:
        names = sorted({path.rpartition(".")[2] for path in paths})
        near = difflib.get_close_matches(missing[0].rpartition(".")[2], names, n=3) or names[:8]
        raise ConfigError(
            f"vlm.{side}.targets: {missing[0]}: no linear layer of the {side} side is called so; nearest: "
            f"{', '.join(near)}; or {ALL_LINEAR}"
        )
    yield from (path for path in paths if any(_ends(path, name) for name in section.targets))


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _unused_layers(model: PreTrainedModel) -> tuple[str, ...]:
    """Where the vision tower goes on behind the layer whose states are read: no gradient would reach adapters there."""
    feature_layer = getattr(model.config, "vision_feature_layer", None)
    tower = next((path for path, _ in model.named_modules() if path.endswith("vision_tower")), None)
    if tower is None or not isinstance(feature_layer, int):
        return ()
    number = model.config.vision_config.num_hidden_layers
    last = feature_layer if feature_layer >= 0 else number + 1 + feature_layer  # states 0 are the embeddings
    ends = [
        path for path, module in model.named_modules() if path.startswith(tower) and isinstance(module, nn.ModuleList)
    ]
    behind = tuple(f"{path}.{layer}." for path in ends for layer in range(last, number))
    return (*behind, f"{tower}.vision_model.head", f"{tower}.head")
