"""Small random CLIP and SigLIP checkpoints with tokenizers and processors made by code, and documents to train on."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from transformers import models as families

SIDE, CONTEXT, WIDTH = 32, 64, 16
KINDS = ("clip", "siglip")

_START, _END, _PAD = "<start>", "<end>", "<pad>"
_SIZES = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def byte_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Bytes between a start and an end as CLIP has them; behind them an end alone, as SigLIP has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    named = {"bos_token": _START, "eos_token": _END, "pad_token": _PAD}
    made = PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=CONTEXT, **named)
    ends = [(text, made.convert_tokens_to_ids(text)) for text in (_START, _END)]
    single = f"{_START} $A {_END}" if kind == "clip" else f"$A {_END}"
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return made


def write_checkpoint(kind: str, directory: Path, *, seed: int = 0) -> Path:
    """A small checkpoint of a kind as save_pretrained writes it, with its processor."""
    tokenizer = byte_tokenizer(kind)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = _SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **ids}
    text |= {"projection_size": WIDTH} if kind == "siglip" else {}
    config = AutoConfig.for_model(
        kind,
        text_config=text,
        vision_config=_SIZES | {"image_size": SIDE, "patch_size": 8},
        **({"projection_dim": 12} if kind == "clip" else {}),
    )
    torch.manual_seed(seed)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # livelier than at its start, so that what is read makes a difference
            if parameter.dim() > 1:
                parameter *= 3
        model.logit_scale.fill_(2.5)
    model.save_pretrained(directory)
    size = {"height": SIDE, "width": SIDE}
    if kind == "clip":
        images = families.clip.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
        families.clip.CLIPProcessor(images, tokenizer).save_pretrained(directory)
    else:
        families.siglip.SiglipProcessor(families.siglip.SiglipImageProcessor(size=size), tokenizer).save_pretrained(
            directory
        )
    return directory


@cache
def shared_checkpoint(kind: str) -> str:
    """That of a kind, for all tests of a process."""
    directory = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return str(write_checkpoint(kind, Path(directory)))
