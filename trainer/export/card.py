"""README.md and LICENSE of an export: what it is, how it is used, what a file is without the rest, and whose terms."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from model.references import SCRATCH, read_reference
from model.vlm.objective import NAME
from trainer.build import FUSION_FILE
from trainer.config import RunConfig
from trainer.config.exported import MANIFEST, read_export
from trainer.export.graph import ONNX, TORCH
from trainer.export.manifest import CARD, FROZEN
from trainer.export.reader import READER, reader_text
from trainer.export.retrieval import retrieval_text
from trainer.export.vlm import vlm_text

HEADS = "heads.safetensors"
LICENSE = "LICENSE"

_METRICS = (
    "val/accuracy",
    "val/anls",
    "val/page_accuracy",
    "val/hit@1",
    "val/hit@3",
    "val/long_hit@1",
    "val/binary",
    "val/open",
    "val/consistency",
    "val/loss",
    "val/itm_accuracy",
)
_ALONE = {
    "blip_vqa": "BLIP that `BlipForQuestionAnswering` loads. It was trained to read fused tokens: alone it reads those "
    "of its own vision tower, and answers otherwise than the whole",
    "blip_itm": "BLIP that `BlipForImageTextRetrieval` loads. It was trained to match texts with fused tokens: alone "
    "it reads those of its own vision tower. What `left_out` in its config.json names was never trained and is not in "
    "it; transformers makes it up at random",
    "blip_vision": "BLIP's vision tower, usable as it is. Nothing else is in it: transformers makes up the rest at "
    "random",
    "blip_second": "the second BLIP's vision tower, usable as it is. Nothing else is in it: transformers makes up the "
    "rest at random",
    "timm_vision": "a backbone of timm, usable as it is (`timm.create_model` with `local-dir:`)",
    "timm_second": "a backbone of timm, usable as it is (`timm.create_model` with `local-dir:`)",
    "lxmert": "LXMERT that `LxmertModel` loads; usable as it is, without the head over classes",
    "t5": "T5 that `T5ForConditionalGeneration` loads. It was trained to read fused image tokens, or page tokens, in "
    "front of a question: alone it reads words only",
    "efficient_sam.safetensors": "EfficientSAM's image encoder under its official names, usable as it is; what makes "
    "masks is not in it",
    "retrieval": "a whole checkpoint with its processor, usable as it is (`AutoModel`)",
    "vlm": "a whole checkpoint with its processor, adapters merged, usable as it is (`AutoModelForImageTextToText`)",
}
_FILES = {
    FUSION_FILE: "grid token, width adapters and fusion encoder. It reads the tokens of both vision towers and gives "
    "those that the text towers read: without the towers it says nothing",
    HEADS: "heads over classes, behind a text tower that reads fused tokens, or one over pages, behind a "
    "vision-language model; of no use alone",
    READER: "what is beside T5: where words stand, tokens of pages, the head that names a page; of no use alone",
    ONNX: "the fusion encoder as a graph: tokens and feature map in, fused tokens out; no tower is in it",
    TORCH: "the same graph for `torch.export.load`",
    "export.json": "which part lies where",
    "config.yaml": "the recipe, completely; `duoflow train` takes it",
    "preprocessing.json": "what pictures and texts have to become before the towers read them",
    "manifest.json": "sha256 of every file, and which frozen checkpoints belong to it; checked whenever it is loaded",
    "tokenizers": "of towers that are not in the export",
    "processor": "of the checkpoint that the adapter belongs to",
    FROZEN: "the checkpoints that were not trained, as they were found",
}


class Card(NamedTuple):
    """What a kind of model has to say for itself."""

    library: str
    pipeline_tag: str
    text: str


def write_card(config: RunConfig, directory: Path, license_id: str | None = None) -> None:
    """Write the model card and the license of an export whose other files are there.

    Args:
        license_id: as the hub names licenses; None says that those of its parts apply.
    """
    content = read_export(directory)
    card, bases = _card(config, directory, content), _bases(config)
    terms = [f"license: {license_id}"] if license_id else ["license: other", "license_name: of-its-parts"]
    matter = [
        f"library_name: {card.library}",
        f"pipeline_tag: {card.pipeline_tag}",
        *terms,
        *([] if license_id else [f"license_link: {LICENSE}"]),
        *(["base_model:", *(f"- {hub_id}" for hub_id in bases)] if bases else []),
        "tags:",
        "- duoflow",
        f"- {config.task}",
    ]
    rows = "\n".join(f"| {name} | {content['metrics'][name]:.4f} |" for name in _METRICS if _known(content, name))
    files = "\n".join(f"| `{name}` | {said} |" for name, said in _files(directory, content))
    text = f"""---
{chr(10).join(matter)}
---
# {config.run.name}

{card.text}

| metric of the validation at step {content["step"]:,} | value |
|---|---|
{rows}

## Use

```
pip install duoflow
{_command(config)}
```
`duoflow.load("DIR")` in Python, `duoflow evaluate DIR --split val data.val=SHARDS`, and `initialize_from: DIR` in a
recipe take the same directory. {_frozen_line(config, directory)}

## Files

| file | what it is, and without the rest |
|---|---|
{files}
"""
    (directory / CARD).write_text(text, encoding="utf-8")
    (directory / LICENSE).write_text(_license(config, license_id), encoding="utf-8")


def _card(config: RunConfig, directory: Path, content: Mapping[str, Any]) -> Card:
    if config.model.vlm is not None:
        return Card("peft" if NAME in content["adapters"] else "transformers", "image-text-to-text", vlm_text(config))
    if config.model.reader is not None:
        return Card("duoflow", "document-question-answering", reader_text(config, content))
    if config.model.retrieval is not None:
        return Card("transformers", "visual-document-retrieval", retrieval_text(config))
    return Card("duoflow", "visual-question-answering", _fusion_text(config, directory, content))


def _fusion_text(config: RunConfig, directory: Path, content: Mapping[str, Any]) -> str:
    model = config.model
    trained = [
        "fusion",
        *content["parts"],
        *(f"{name} head" for name in _heads(directory)),
        *(f"LoRA on {part}" for part in content["adapters"]),
    ]
    return (
        f"A {model.fusion.name} fusion encoder over {model.vision} and {model.second_stream}, trained with DuoFlow\n"
        f"for {content['step']:,} optimizer steps. Trained parts: {', '.join(trained)}.\n"
        f"Matching: {model.match}; answers: {model.answer}."
    )


def _heads(directory: Path) -> list[str]:
    path = directory / HEADS
    if not path.is_file():
        return []
    with safe_open(path, "pt") as file:
        return sorted({name.partition(".")[0] for name in file.keys()})  # noqa: SIM118 - it is no mapping


def _known(content: Mapping[str, Any], name: str) -> bool:
    return content["metrics"].get(name) is not None


def _bases(config: RunConfig) -> list[str]:
    """What of the hub it was made of, each once."""
    ids = [read_reference(reference).hub_id for reference in _references(config)]
    return list(dict.fromkeys(hub_id for hub_id in ids if hub_id is not None))


def _references(config: RunConfig) -> Iterator[str]:
    model = config.model
    whole = model.vlm or model.retrieval
    if whole is not None:
        yield whole
        return
    towers = [model.answer] if model.reader else [model.vision, model.match, model.answer]
    second = [model.second_vision] if not model.reader and model.second_stream in ("blip", "timm") else []
    yield from (reference for reference in [*towers, *second] if reference not in (SCRATCH, "efficient_sam"))


def _command(config: RunConfig) -> str:
    if config.model.retrieval is not None:
        return "duoflow evaluate DIR --split val data.val=SHARDS"
    if config.model.reader is not None:
        return 'duoflow answer DIR --shards SHARDS --document ID --question "..."'
    return 'duoflow answer DIR --image photo.jpg --question "..."'


def _frozen_line(config: RunConfig, directory: Path) -> str:
    if (directory / FROZEN).is_dir():
        return "It needs nothing else."
    named = ", ".join(dict.fromkeys(_references(config)))
    if not named or config.model.retrieval is not None:
        return "It needs nothing else."
    return f"What was not trained is taken from where the recipe names it ({named}), if it is the same to the byte."


def _files(directory: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    adapters = {
        name: f"adapters of {part} in PEFT's format, over a checkpoint that is not in it"
        for part, name in content["adapters"].items()
    }
    table = _ALONE | _FILES | adapters
    for name in sorted({*(path.name for path in directory.iterdir()), MANIFEST}):  # that one is written last
        if name in table:
            yield name + ("/" if (directory / name).is_dir() else ""), table[name]


def _license(config: RunConfig, license_id: str | None) -> str:
    named = list(dict.fromkeys(_references(config)))
    made = "\n".join(f"  {reference}" for reference in named) or "  nothing: all of it was trained from random weights"
    own = f"What was trained is given under {license_id}." if license_id else "Its authors have named no license."
    return f"""Terms of this export
====================

{own}

What it was made of keeps its own terms; trained or adapted copies of these checkpoints are works derived from them:
{made}

DuoFlow, which wrote these files, is under the Apache License 2.0 and claims nothing of what it writes.
"""
