"""The checkpoints that a recipe names: found in a directory or in the hub's cache, whole, and of the right kind."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from model.config import SCRATCH, ModelConfig, hub_reference, local_directory
from trainer.config import RunConfig
from trainer.doctor.table import Row

VISION = ("BlipForQuestionAnswering", "BlipForImageTextRetrieval", "BlipForConditionalGeneration")
MATCH = ("BlipForImageTextRetrieval",)
CAPTIONER = ("BlipForConditionalGeneration",)
T5 = ("T5ForConditionalGeneration",)
ANSWER = ("BlipForQuestionAnswering", *T5)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SENTENCEPIECE = "spiece.model"
TOKENIZERS = ("tokenizer.json", "vocab.txt", SENTENCEPIECE)
"""One of each is enough; the first that is there is read."""
BLIP_WIDTH, T5_WIDTH = 768, 512
"""What transformers takes for a width that a config.json leaves out."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

Find = Callable[[str], Path | None]


class Use(NamedTuple):
    """A key of the recipe that names a checkpoint."""

    key: str
    reference: str
    architectures: tuple[str, ...]
    """Class names of transformers, one of which it has to be."""
    trains: bool = True
    """Whether training needs it; else only `duoflow answer` and `duoflow evaluate` with captions do."""


class Checkpoint(NamedTuple):
    """What the files of a reference are."""

    place: str
    """The directory, or the cache with the revision."""
    faults: list[str]
    """What is missing or wrong; empty if it can be loaded."""
    config: Mapping[str, Any]
    """config.json; empty if it is missing."""
    steps: tuple[str, ...]
    """How to get it; a directory that is named cannot be fetched."""

    @property
    def is_on_hub(self) -> bool:
        """Whether the reference is a hub id."""
        return bool(self.steps)


def checkpoint_uses(config: RunConfig) -> list[Use]:
    """Every reference that the recipe's losses and streams use, `scratch` among them, and those of its captions."""
    model = config.model
    uses = [Use("model.vision", model.vision, VISION)]
    if model.second_stream == "blip":
        uses.append(Use("model.second_vision", model.second_vision, VISION))
    if config.losses.itm > 0:
        uses.append(Use("model.match", model.match, MATCH))
    if config.losses.answer > 0:
        uses.append(Use("model.answer", model.answer, ANSWER))
    pipeline = (("captioner", CAPTIONER), ("reader", T5))
    named = [(part, getattr(config.pnp, part), kinds) for part, kinds in pipeline]
    return uses + [Use(f"pnp.{part}", name, kinds, trains=False) for part, name, kinds in named if name is not None]


def examine_all(uses: Sequence[Use]) -> dict[str, Checkpoint]:
    """Reference -> what is there of it; each is looked for once."""
    references = dict.fromkeys(use.reference for use in uses if use.reference != SCRATCH)
    return {name: examine(name, [use.key for use in uses if use.reference == name]) for name in references}


def checkpoint_rows(uses: Sequence[Use], checkpoints: Mapping[str, Checkpoint]) -> list[Row]:
    """A row for each reference, under all keys that name it."""
    return [
        _row(reference, [use for use in uses if use.reference == reference], checkpoint)
        for reference, checkpoint in checkpoints.items()
    ]


def width_row(model: ModelConfig, uses: Sequence[Use], checkpoints: Mapping[str, Checkpoint]) -> Row:
    """The widths that have to fit each other, as far as they are known."""
    widths = {}
    for use in uses:
        if use.reference == SCRATCH:
            widths[use.key] = model.scratch.width
        elif config := checkpoints[use.reference].config:
            widths[use.key] = read_width(config)
    vision = widths.get("model.vision")
    read = {key: widths[key] for key in ("model.match", "model.answer") if key in widths}
    inside = model.fusion.width or vision
    known = {"vision": vision, "fusion": inside, **{f"read by {key.removeprefix('model.')}": read[key] for key in read}}
    found = ", ".join(f"{name} {width}" for name, width in known.items() if width is not None) or "not known yet"
    fault = None
    if len(set(read.values())) > 1:
        different = f"{', '.join(read)}: read image tokens of different widths {sorted(read.values())}"
        fault = f"{different}; name checkpoints of one size"
    elif model.fusion.name == "difnet" and inside is not None and inside % model.fusion.heads:
        fault = f"model.fusion.heads: {model.fusion.heads} does not divide the width {inside}; name a divisor"
    return Row("widths", found, fault)


def examine(reference: str, keys: Sequence[str]) -> Checkpoint:
    """Look for the files of a checkpoint, on this machine alone."""
    directory = local_directory(reference)
    if directory is not None:
        return _examine_directory(directory)
    hub_id, revision = hub_reference(reference)
    if _HUB_ID.fullmatch(hub_id) is None:
        return Checkpoint("nowhere", ["no such directory, and no hub id (OWNER/NAME)"], {}, ())
    return _examine_cache(hub_id, revision, keys)


def read_width(config: Mapping[str, Any]) -> int:
    """The width of the image tokens that a checkpoint's text side reads; for BLIP also that of its vision tower."""
    if config.get("model_type") == "t5":
        return config.get("d_model", T5_WIDTH)
    # transformers makes BLIP's text side read what its own vision tower writes, whatever text_config says.
    return (config.get("vision_config") or {}).get("hidden_size", BLIP_WIDTH)


def _row(reference: str, uses: Sequence[Use], checkpoint: Checkpoint) -> Row:
    name = ", ".join(use.key for use in uses)
    wrong = [*checkpoint.faults, *(_misfits(uses, checkpoint.config) if checkpoint.config else ())]
    if not wrong:
        return Row(name, f"{reference}: {_architecture(checkpoint.config)}, {checkpoint.place}")
    steps = checkpoint.steps if checkpoint.faults else ()
    found = f"{reference}: {'; '.join(wrong)}"
    if not any(use.trains for use in uses):
        return Row(name, f"{found} (training does not need it)", steps=steps)
    return Row(name, found, f"{found}; run `{steps[0]}`" if steps else found, steps)


def _examine_directory(directory: Path) -> Checkpoint:
    if not directory.is_dir():
        expected = "expected a directory that save_pretrained or `hf download --local-dir` wrote"
        return Checkpoint(str(directory), [f"no such directory; {expected}"], {}, ())

    def find(name: str) -> Path | None:
        return directory / name if (directory / name).is_file() else None

    faults, config = _examine_files(find)
    return Checkpoint(f"in {directory}", faults, config, ())


def _examine_cache(hub_id: str, revision: str | None, keys: Sequence[str]) -> Checkpoint:
    def find(name: str) -> Path | None:
        path = try_to_load_from_cache(hub_id, name, cache_dir=constants.HF_HUB_CACHE, revision=revision)
        return Path(path) if isinstance(path, str) else None

    faults, config = _examine_files(find)
    file = find("config.json")
    if file is None:
        faults = [f"not in the hub cache {constants.HF_HUB_CACHE}"]
    place = "not in the hub cache" if file is None else f"hub cache, revision {file.parent.name}, {file.parent}"
    return Checkpoint(place, faults, config, fetch_steps(hub_id, revision, keys))


def fetch_steps(hub_id: str, revision: str | None, keys: Sequence[str]) -> tuple[str, ...]:
    """The commands that bring a hub checkpoint here: with a network, then without."""
    at = f" --revision {revision}" if revision else ""
    # Some repositories hold the weights once more for TensorFlow.
    download, name = f"hf download {hub_id}{at} --exclude '*.h5'", hub_id.rpartition("/")[2]
    changes = " ".join(f"{key}=./{name}" for key in keys)
    return (
        download,
        f"{download} --local-dir {name}   # without a network: elsewhere, then copy {name}/ here",
        f"# and change the recipe: {changes}",
    )


def _examine_files(find: Find) -> tuple[list[str], Mapping[str, Any]]:
    """What is wrong with a checkpoint's files, and its config.json."""
    file = find("config.json")
    try:
        config = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        faults = ["no config.json"] if file is None else []
    except (OSError, ValueError) as error:
        config, faults = {}, [f"config.json is damaged ({error})"]
    return [*faults, *_weights_faults(find), *_tokenizer_faults(find)], config


def _weights_faults(find: Find) -> Iterator[str]:
    name = next((name for name in WEIGHTS if find(name) is not None), None)
    if name is None:
        yield f"no weights ({WEIGHTS[0]} or {WEIGHTS[2]})"
        return
    files = [name]
    if name.endswith(".index.json"):
        try:
            files = sorted(set(json.loads(find(name).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError):
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


def is_damaged(path: Path) -> bool:
    """Whether a safetensors file is cut off or none at all; its tensors are not read."""
    try:
        with safe_open(path, framework="numpy") as file:
            file.metadata()
    except (OSError, SafetensorError):
        return True
    return False


def _misfits(uses: Sequence[Use], config: Mapping[str, Any]) -> Iterator[str]:
    found = _architecture(config)
    for use in uses:
        if found not in use.architectures:
            yield f"is a {found}; {use.key} expects {' or '.join(use.architectures)}"


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if names else "model of no named architecture"


def cache_row() -> Row:
    """Where the hub's files are kept, and whether a start may ask for more."""
    offline = constants.HF_HUB_OFFLINE
    network = "HF_HUB_OFFLINE=1" if offline else "set HF_HUB_OFFLINE=1 where there is no network"
    there = "" if os.path.isdir(constants.HF_HUB_CACHE) else " (not there yet)"
    return Row("hub cache", f"{constants.HF_HUB_CACHE}{there}; {network}")
