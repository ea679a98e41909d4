"""Tiny T5 checkpoints of both kinds: T5's first version shares embeddings and output layer, Flan-T5 has them apart."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5ForConditionalGeneration

from tests.models import tiny_t5

HEADS = ("tied", "untied")


def t5_with_head(directory: Path, head: str) -> str:
    """A directory as the hub has it: of an untied T5, config.json says so and the file holds both tensors."""
    tiny_t5(directory)
    if head == "untied":
        state = load_file(directory / "model.safetensors")
        generator = torch.Generator().manual_seed(9)
        state["lm_head.weight"] = torch.randn(state["shared.weight"].shape, generator=generator)
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        change_config(directory, tie_word_embeddings=False, scale_decoder_outputs=None)
    return str(directory)


def change_config(directory: Path, name: str = "config.json", **changes: object) -> None:
    """Set values of a JSON file of a checkpoint; None takes one out."""
    config = json.loads((directory / name).read_text()) | changes
    kept = {key: value for key, value in config.items() if not (key in changes and value is None)}
    (directory / name).write_text(json.dumps(kept))


@torch.no_grad()
def logits(model: T5ForConditionalGeneration) -> Tensor:
    """(1, 3, vocabulary) of a few tokens."""
    ids, answer = torch.tensor([[3, 4, 5, 1]]), torch.tensor([[0, 5, 6]])
    return model.eval()(input_ids=ids, decoder_input_ids=answer).logits
