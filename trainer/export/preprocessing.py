"""What pictures and texts have to become before a model reads them, in words of JSON; and the tokenizers for it.

preprocessing.json   see `describe`; DuoFlow itself goes by config.yaml, this is for whoever feeds a graph elsewhere
tokenizers/PART/     of a text tower whose checkpoint is not in the export
processor/           of a vision-language model whose checkpoint is not in the export
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.pixels import CLIP_MEAN, CLIP_STD, Reads
from model.reader.build import BuiltReader
from model.retrieval.build import BuiltRetrieval
from model.towers.timm_backbone import TimmVisionTower
from model.towers.tokenizer import BlipCodec, T5Codec
from model.towers.vision import BlipVisionTower, EfficientSamTower, VisionTower
from model.vlm.build import BuiltVlm
from trainer.build import AnyBuilt, image_size
from trainer.config import RunConfig
from trainer.run_directory import write_json

PREPROCESSING, TOKENIZERS, PROCESSOR = "preprocessing.json", "tokenizers", "processor"


def write_preprocessing(config: RunConfig, built: AnyBuilt, parts: Mapping[str, str], directory: Path) -> None:
    """Write the description, and the tokenizers and processors that the parts of an export do not bring.

    Args:
        parts: what lies where in the export.
    """
    places: dict[str, str] = {}
    by_tokenizer: dict[int, str] = {}
    for part, tokenizer in built.tokenizers.items():
        if part in parts:
            places[part] = parts[part]
        elif isinstance(built, BuiltVlm):
            built.processor.save_pretrained(directory / PROCESSOR)
            places[part] = PROCESSOR
        elif id(tokenizer) in by_tokenizer:
            places[part] = by_tokenizer[id(tokenizer)]
        else:
            tokenizer.save_pretrained(directory / TOKENIZERS / part)
            places[part] = f"{TOKENIZERS}/{part}"
        by_tokenizer.setdefault(id(tokenizer), places[part])
    write_json(directory / PREPROCESSING, describe(config, built, places))


def describe(config: RunConfig, built: AnyBuilt, places: Mapping[str, str]) -> dict[str, Any]:
    """Pictures and texts, as far as they are not left to a processor.

    Args:
        places: where the tokenizer of each part lies in the export.
    """
    texts = {part: {"tokenizer": place} for part, place in places.items()}
    if isinstance(built, BuiltVlm | BuiltRetrieval):
        return {"images": {"processor": next(iter(places.values()))}, "texts": texts}
    if isinstance(built, BuiltReader):
        return {"images": None, "texts": {part: known | _codec(built.answer_codec) for part, known in texts.items()}}
    codecs = {"answer": built.answer_codec, "match": built.match_codec}
    side = image_size(config, built)
    stream = built.objective.tower("second_stream")
    towers = {"vision": built.objective.sight, "second_stream": None if stream is None else stream.tower}
    pixels = {name: _pixels(tower) for name, tower in towers.items() if tower is not None and side is not None}
    images = (
        None
        if side is None
        else {
            "mode": "RGB, upright, what is transparent on white",
            "size": side,
            "resize": "bicubic to a square, without keeping the aspect ratio",
            "towers": pixels,
        }
    )
    return {"images": images, "texts": {part: known | _codec(codecs[part]) for part, known in texts.items()}}


def _pixels(tower: VisionTower) -> dict[str, Any]:
    """What a tower makes of the square, in [0, 1], itself."""
    if isinstance(tower, BlipVisionTower):
        return Reads(tower.image_size, CLIP_MEAN, CLIP_STD)._asdict()
    if isinstance(tower, TimmVisionTower):
        return tower.reads._asdict()
    assert isinstance(tower, EfficientSamTower), "there is no other that reads pixels"
    constants = {name: getattr(tower.module, f"{name}_milli").flatten().tolist() for name in ("mean", "std")}
    thousandths = {name: [value / 1000 for value in values] for name, values in constants.items()}
    return {"size": tower.image_size, **thousandths, "interpolation": "bilinear"}


def _codec(codec: BlipCodec | T5Codec) -> dict[str, Any]:
    """Special ids and limits: a question is its first id, its tokens, the end."""
    known = {name: getattr(codec, name) for name in ("start_id", "end_id", "pad_id")}
    first = {"first_id": codec.first_id} if isinstance(codec, BlipCodec) else {"lower_case": True}
    limits = {name: getattr(codec, name) for name in ("max_question_tokens", "max_answer_tokens")}
    return {**known, **first, **limits}
