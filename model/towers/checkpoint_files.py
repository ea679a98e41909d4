"""What a checkpoint in Hugging Face format has to be, what of it is there, and how to get it: nothing is loaded.

Light: `duoflow doctor` looks at files with this and imports neither torch nor transformers for it.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from model.references import SCRATCH, Reference, read_reference
from shards.format.index import Medium

BLIP_ARCHITECTURES = ("BlipForQuestionAnswering", "BlipForImageTextRetrieval", "BlipForConditionalGeneration")
T5_ARCHITECTURES = ("T5ForConditionalGeneration",)
LXMERT_ARCHITECTURES = ("LxmertForPreTraining", "LxmertForQuestionAnswering", "LxmertModel")
_OLD_NAMES = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}
"""What the first releases of transformers called a class; checkpoints of their time still say so."""

SCRATCH_REFUSED = f"{SCRATCH}: only parts of the model section can start untrained; name a hub id or a directory"
"""What is said of `scratch` where a checkpoint is needed."""

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""One of them is enough; the first that is there is read."""
SENTENCEPIECE = "spiece.model"
TOKENIZERS = ("tokenizer.json", "vocab.txt", SENTENCEPIECE)
"""One of them is enough."""

TOKENIZER_CONFIG = "tokenizer_config.json"

_INDEX = ".index.json"
_SMALL = (".json", ".txt", ".model", ".jinja")
"""How the files of a checkpoint end that hold no weights."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LONG_REASON = 160

Find = Callable[[str], Path | None]
"""A file's name to where it lies; None if it is not there."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class of transformers, by its present name, that a config.json names."""
    names = config.get("architectures")
    return _OLD_NAMES.get(names[0], names[0]) if names else "model of no named architecture"


def is_hub_id(name: str) -> bool:
    """Whether a name without its revision can be one of the hub."""
    return _HUB_ID.fullmatch(name) is not None


def in_directory(directory: Path) -> Find:
    """Looks for a checkpoint's files in a directory."""
    return lambda name: directory / name if (directory / name).is_file() else None


def in_cache(hub_id: str, revision: str | None) -> Find:
    """Looks for a checkpoint's files in the hub's cache."""

    def find(name: str) -> Path | None:
        path = try_to_load_from_cache(hub_id, name, cache_dir=constants.HF_HUB_CACHE, revision=revision)
        return Path(path) if isinstance(path, str) else None

    return find


def examine_files(find: Find) -> tuple[list[str], Mapping[str, Any]]:
    """What is missing or damaged of a checkpoint's files, as far as it shows without loading; and its config.json."""
    file = find(CONFIG)
    faults, config = ([f"no {CONFIG}"], {}) if file is None else _read_config(file)
    return [*faults, *_weights_faults(find), *_tokenizer_faults(find)], config


def files_behind(read: Reference) -> tuple[Path, ...]:
    """The files of a checkpoint that say what it computes, in a directory or in the hub's cache; or none of them.

    The weights that are read where there are several forms of them, and everything small beside them: configuration,
    tokenizer, processor.
    """
    find = _finder(read)
    if find is None:
        return ()
    file = find(CONFIG)
    if file is None:
        return ()
    others = {name for name in WEIGHTS if name.endswith(_INDEX)}
    found = [path for path in sorted(file.parent.iterdir()) if path.suffix in _SMALL and path.name not in others]
    weights = next((name for name in WEIGHTS if find(name) is not None), None)
    if weights is not None:
        found.append(file.parent / weights)
        if weights.endswith(_INDEX):
            parts = json.loads((file.parent / weights).read_text(encoding="utf-8"))["weight_map"].values()
            found += [file.parent / name for name in sorted(set(parts))]
    return tuple(path for path in found if path.is_file())


def medium_of(reference: str) -> Medium | None:
    """What the vision tower behind a reference reads, by its config.json; None where that is not on this machine."""
    read = read_reference(reference)
    if read.is_untrained or read.is_timm:
        return "pixels"
    config = _config_behind(read)
    return ("regions" if config["model_type"] == "lxmert" else "pixels") if "model_type" in config else None


def region_width_of(reference: str) -> int | None:
    """How many numbers of a region the LXMERT behind a reference reads, by its config.json; None where that does not
    say it, or is not on this machine."""
    width = _config_behind(read_reference(reference)).get("visual_feat_dim")
    return width if isinstance(width, int) else None


def _config_behind(read: Reference) -> Mapping[str, Any]:
    """A checkpoint's config.json; nothing where it is not on this machine."""
    find = _finder(read)
    file = None if find is None else find(CONFIG)
    return {} if file is None else _read_config(file)[1]


def _finder(read: Reference) -> Find | None:
    """Looks for the files behind a reference; None where it leads to no checkpoint."""
    if read.directory is not None:
        return in_directory(read.directory)
    return in_cache(read.hub_id, read.revision) if read.hub_id is not None and is_hub_id(read.hub_id) else None


def is_damaged(path: Path) -> bool:
    """Whether a safetensors file is cut off or none at all; its tensors are not read."""
    try:
        with safe_open(path, framework="numpy") as file:
            file.metadata()
    except (OSError, SafetensorError):
        return True
    return False


def fetch_command(hub_id: str, revision: str | None) -> str:
    """The command that brings a checkpoint into the hub's cache; with `--local-dir DIR` into a directory."""
    at = f" --revision {revision}" if revision else ""
    # Some repositories hold the weights once more for TensorFlow.
    return f"hf download {hub_id}{at} --exclude '*.h5'"


def short_reason(error: BaseException) -> str:
    """What an exception of another library says, in a piece of one line.

    Its class is named where the text alone says little, as that of a KeyError does.
    """
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(" ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).split())
    text = text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"
    first, stop, _ = text.partition(". ")
    return first + stop.strip() if len(text) > _LONG_REASON else text


def _read_config(file: Path) -> tuple[list[str], Mapping[str, Any]]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{CONFIG} is damaged ({error})"], {}
    return ([], config) if isinstance(config, dict) else ([f"{CONFIG} is damaged (no JSON object)"], {})


def _weights_faults(find: Find) -> Iterator[str]:
    name = next((name for name in WEIGHTS if find(name) is not None), None)
    if name is None:
        yield f"no weights ({WEIGHTS[0]} or {WEIGHTS[2]})"
        return
    files = [name]
    if name.endswith(_INDEX):
        try:
            files = sorted(set(json.loads(find(name).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            yield f"{name} is damaged"
            return
    if missing := [file for file in files if find(file) is None]:
        yield f"{len(missing)} of {len(files)} weights files are missing, such as {missing[0]}"
        return
    yield from (f"{file} is damaged" for file in files if file.endswith(".safetensors") and is_damaged(find(file)))


def _tokenizer_faults(find: Find) -> Iterator[str]:
    name = next((name for name in TOKENIZERS if find(name) is not None), None)
    if name is None:
        yield f"no tokenizer ({', '.join(TOKENIZERS)})"
    elif name == SENTENCEPIECE and find_spec("sentencepiece") is None:
        yield f"{SENTENCEPIECE} needs the package sentencepiece (`pip install sentencepiece`)"
    settings = find(TOKENIZER_CONFIG)
    try:
        if settings is not None:
            json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        yield f"{TOKENIZER_CONFIG} is damaged"
