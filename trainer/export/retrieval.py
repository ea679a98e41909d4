"""The export of page retrieval: a whole CLIP or SigLIP, adapters merged, that `AutoModel.from_pretrained` loads.

retrieval/    the checkpoint with its processor, as save_pretrained writes it
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.retrieval.build import BuiltRetrieval
from model.towers.lora import without_adapters
from trainer.config import RunConfig

RETRIEVAL = "retrieval"

OFFSET = "temperature.offset"
_NAMES = {
    "text.model.": "text_model.",
    "text.projection.": "text_projection.",
    "vision.model.": "vision_model.",
    "vision.projection.": "visual_projection.",
}
"""How parameters of the objective begin -> how those of the checkpoint do."""


def write_checkpoint(built: BuiltRetrieval, parameters: Mapping[str, Tensor], directory: Path) -> None:
    """Write the whole checkpoint.

    Args:
        parameters: full fp32 tensors by the objective's names.
    """
    plain = without_adapters(built.checkpoint.model.state_dict())
    weights = {name: value.float().cpu() for name, value in plain.items()}
    for name, value in parameters.items():
        if name == OFFSET:
            scale = built.objective.temperature.log_scale(value)
            weights["logit_scale"] = scale.reshape(weights["logit_scale"].shape)
        elif not name.startswith("lora."):
            weights[_of_checkpoint(name)] = value
    for name, down in parameters.items():
        if name.startswith("lora.") and name.endswith(".lora_A.weight"):
            path = name.removesuffix(".lora_A.weight")
            own = _of_checkpoint(f"{path.removeprefix('lora.')}.weight")
            section = getattr(built.config.lora, path.split(".")[1])
            weights[own] = weights[own] + section.alpha / section.rank * (parameters[f"{path}.lora_B.weight"] @ down)
    config = built.checkpoint.model.config
    with torch.device("meta"):
        model = type(built.checkpoint.model)(type(config).from_dict(config.to_dict()))
    model.load_state_dict(weights, strict=True, assign=True)
    model.save_pretrained(directory)
    built.checkpoint.processor.save_pretrained(directory)


def retrieval_text(config: RunConfig) -> str:
    """What the model card says of it."""
    return (
        f"{config.model.retrieval}, trained with DuoFlow to find the page that answers a question "
        f"(`{config.retrieval.loss}`).\n"
        f'`AutoModel.from_pretrained("{RETRIEVAL}")` loads it; in another recipe: `model.retrieval`.'
    )


def _of_checkpoint(name: str) -> str:
    start = next(start for start in _NAMES if name.startswith(start))
    return _NAMES[start] + name.removeprefix(start)
