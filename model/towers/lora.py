"""LoRA (Hu et al. 2021) through `peft` on the text side of BLIP and on T5.

The layers of a frozen tower are replaced in place, so that whoever drives them need not know. What is trained are
small leaf modules inside of it, which the objective registers by reference: the engine then sees them and nothing else
of the tower.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import LoraConfig
from model.references import hub_reference, local_directory
from shards.errors import ConfigError, DataError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files that `PeftModel.from_pretrained` reads."""

_ADAPTER = "default"
_PREFIX = "base_model.model."
"""What PEFT puts in front of a model's own names."""
_UNUSED = ("vision_model", "text_proj", "vision_proj")
"""Children of a BLIP model that its tower of text does not run."""
_EXCLUDED = rf"({'|'.join(_UNUSED)})(\..*)?"


def add_lora(model: nn.Module, config: LoraConfig, key: str) -> nn.Module:
    """Put adapters into a checkpoint's model, all but its vision tower; its own weights stay as they are.

    Args:
        key: of the section in the recipe, for errors.

    Returns:
        The trained leaf modules, under the paths that their layers have in `model`.

    Raises:
        ConfigError: no layer has one of the names, or one of them cannot have an adapter.
    """
    try:
        peft_config = _peft_config(config, excluded=_EXCLUDED if hasattr(model, "vision_model") else None)
        inject_adapter_in_model(peft_config, model, adapter_name=_ADAPTER)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{key}.targets: {', '.join(config.targets)}: {reason}; expected names of linear layers, such as "
            f"{', '.join(_linear_names(model))}"
        ) from None
    return leaves_of(model)


def leaves_of(model: nn.Module) -> nn.Module:
    """The trained leaf modules of a model with adapters, under the paths that their layers have in it."""
    leaves = nn.Module()
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            _graft(leaves, path, _leaf(layer))
    return leaves


def _peft_config(config: LoraConfig, *, excluded: str | None = None, **base: Any) -> PeftLoraConfig:
    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        exclude_modules=excluded,
        **base,
    )


def _linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of the linear layers that can have an adapter."""
    names = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.partition(".")[0] not in _UNUSED
    }
    return sorted(names)


def _leaf(layer: LoraLayer) -> nn.Module:
    leaf = nn.Module()
    leaf.lora_A, leaf.lora_B = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
    leaf.lora_dropout = layer.lora_dropout[_ADAPTER]  # registered to follow train() and eval()
    return leaf.requires_grad_(True)


def _graft(root: nn.Module, path: str, leaf: nn.Module) -> None:
    """Register a module below nested containers, one for each part of its path."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root._modules[parent]
    root.add_module(name, leaf)


def save_adapters(
    weights: Mapping[str, Tensor], config: LoraConfig, base: str, directory: Path, *, architecture: str
) -> None:
    """Write adapters in PEFT's format, so that `AutoPeftModel` finds the model that they adapt.

    Args:
        weights: full tensors by the names that they have below `add_lora`'s leaves.
        base: reference of that model.
        architecture: its class in `transformers`.
    """
    excluded = _EXCLUDED if any(name.startswith("text_") for name in weights) else None
    write_adapter(_peft_config(config, excluded=excluded), weights, base, directory, architecture=architecture)


def write_adapter(
    adapter: PeftLoraConfig, weights: Mapping[str, Tensor], base: str, directory: Path, *, architecture: str
) -> None:
    """Write an adapter with its configuration; the arguments are those of `save_adapters`."""
    found_at = local_directory(base)
    name, revision = (str(found_at.absolute()), None) if found_at is not None else hub_reference(base)
    adapter.base_model_name_or_path = name  # a full path: an adapter lies elsewhere than the recipe
    adapter.revision = revision
    adapter.auto_mapping = {"base_model_class": architecture, "parent_library": "transformers"}
    adapter.inference_mode = True
    adapter.save_pretrained(directory)
    state = {f"{_PREFIX}{name}": value.contiguous() for name, value in weights.items()}
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def load_adapters(leaves: nn.Module, directory: Path) -> None:
    """Read adapters in PEFT's format into `add_lora`'s leaves.

    Raises:
        DataError: the file is missing, damaged, or that of another recipe.
    """
    path = directory / WEIGHTS
    try:
        leaves.load_state_dict(plain_names(load_file(path)), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: does not load into this recipe's adapters ({reason})") from None


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file in PEFT's format under the names that they have below `add_lora`'s leaves."""
    return {name.removeprefix(_PREFIX): value for name, value in state.items()}


def without_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of an adapted module under the names that it had before, the adapters left out."""
    parts = {name: name.split(".") for name in state}
    return {
        ".".join(part for part in parts[name] if part != "base_layer"): value
        for name, value in state.items()
        if not any(part.startswith("lora_") for part in parts[name])
    }
