"""The checkpoints that a recipe names: found in a directory or in the hub's cache, whole, and of the right kind."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants

from model.config import ModelConfig, text_towers, vision_references
from model.references import SCRATCH, Reference, read_reference
from model.towers.checkpoint_files import (
    BLIP_ARCHITECTURES,
    CONFIG,
    LXMERT_ARCHITECTURES,
    SCRATCH_REFUSED,
    T5_ARCHITECTURES,
    architecture_of,
    examine_files,
    fetch_command,
    in_cache,
    in_directory,
    is_hub_id,
)
from shards.errors import UserError
from shards.tasks import TASKS
from trainer.config import RunConfig
from trainer.doctor.table import Row

MATCH = ("BlipForImageTextRetrieval",)
READS_IMAGES = (*MATCH, "BlipForQuestionAnswering", *LXMERT_ARCHITECTURES)
"""Those with a text encoder that reads images."""
CAPTIONER = ("BlipForConditionalGeneration",)
VISION = (*BLIP_ARCHITECTURES, *LXMERT_ARCHITECTURES)
RETRIEVAL = ("CLIPModel", "SiglipModel")
ANSWER = ("BlipForQuestionAnswering", *T5_ARCHITECTURES)

BACKBONE = "timm"
"""In the place of a model_type of transformers."""
BLIP_WIDTH, T5_WIDTH = 768, 512
"""What transformers takes for a width that a config.json leaves out."""


class Use(NamedTuple):
    """A key of the recipe that names a checkpoint."""

    key: str
    reference: str
    architectures: tuple[str, ...]
    """Class names of transformers, one of which it has to be; none for a backbone of timm, and
    for a vision-language model."""
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
    if model.vlm is not None:
        return [Use("model.vlm", model.vlm, ())]  # its kind is judged by the checks of a start
    if model.reader is not None:
        return [Use("model.answer", model.answer, T5_ARCHITECTURES)]
    if model.retrieval is not None:
        return [Use("model.retrieval", model.retrieval, RETRIEVAL)]
    kinds = {"vision": VISION, "second_stream": BLIP_ARCHITECTURES}
    uses = [
        Use(key, reference, () if read_reference(reference).is_timm else kinds[tower])
        for tower, (key, reference) in vision_references(model).items()
    ]
    used = text_towers(TASKS[config.task], config.losses)
    if "match" in used:
        uses.append(Use("model.match", model.match, MATCH if config.losses.itm > 0 else READS_IMAGES))
    if "answer" in used:
        uses.append(Use("model.answer", model.answer, ANSWER))
    if config.answers.start_from is not None:
        uses.append(Use("answers.start_from", config.answers.start_from, LXMERT_ARCHITECTURES))
    pipeline = (("captioner", CAPTIONER), ("reader", T5_ARCHITECTURES))
    named = [(part, getattr(config.pnp, part), kinds) for part, kinds in pipeline]
    return uses + [Use(f"pnp.{part}", name, kinds, trains=False) for part, name, kinds in named if name is not None]


def examine_all(uses: Sequence[Use]) -> dict[str, Checkpoint]:
    """Reference -> what is there of it; each is looked for once."""
    references = dict.fromkeys(use.reference for use in uses if use.reference != SCRATCH)
    return {name: examine(name, [use.key for use in uses if use.reference == name]) for name in references}


def checkpoint_rows(uses: Sequence[Use], checkpoints: Mapping[str, Checkpoint]) -> list[Row]:
    """A row for each reference, under all keys that name it."""
    rows = [
        _row(reference, [use for use in uses if use.reference == reference], checkpoint)
        for reference, checkpoint in checkpoints.items()
    ]
    untrained = [use.key for use in uses if use.reference == SCRATCH and not use.trains]
    return rows + [Row(key, f"{SCRATCH_REFUSED} (training does not need it)") for key in untrained]


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
    inside, match = model.fusion.width or vision, read.get("model.match")
    known = {"vision": vision, "fusion": inside, **{f"read by {key.removeprefix('model.')}": read[key] for key in read}}
    found = ", ".join(f"{name} {width}" for name, width in known.items() if width is not None) or "not known yet"
    fault = None
    if len(set(read.values())) > 1:
        different = f"{', '.join(read)}: read image tokens of different widths {sorted(read.values())}"
        fault = f"{different}; name checkpoints of one size"
    elif model.fusion.name != "sum" and inside is not None and inside % model.fusion.heads:
        fault = f"model.fusion.heads: {model.fusion.heads} does not divide the width {inside}; name a divisor"
    elif model.second_stream == "efficient_sam_masks" and None not in (vision, match) and vision != match:
        fault = (
            f"model.second_stream: efficient_sam_masks looks with the tokens of model.vision, which are {vision} wide, "
            f"and model.match reads {match}; name checkpoints of one width in both, or use efficient_sam"
        )
    return Row("widths", found, fault)


def examine(reference: str, keys: Sequence[str]) -> Checkpoint:
    """Look for the files of a checkpoint, on this machine alone."""
    read = read_reference(reference)
    if read.is_timm:
        return _examine_backbone(read)
    if read.directory is not None:
        return _examine_directory(read.directory)
    if read.hub_id is None or not is_hub_id(read.hub_id):
        return Checkpoint("nowhere", ["no such directory, and no hub id (OWNER/NAME)"], {}, ())
    return _examine_cache(read.hub_id, read.revision, keys)


def read_width(config: Mapping[str, Any]) -> int:
    """The width of the image tokens that a checkpoint's text side reads; for BLIP also that of its vision tower."""
    if config.get("model_type") == "t5":
        return config.get("d_model", T5_WIDTH)
    if config.get("model_type") == BACKBONE:
        return config["width"]
    if config.get("model_type") == "lxmert":
        return config.get("hidden_size", BLIP_WIDTH)
    # transformers makes BLIP's text side read what its own vision tower writes, whatever text_config says.
    return (config.get("vision_config") or {}).get("hidden_size", BLIP_WIDTH)


def _row(reference: str, uses: Sequence[Use], checkpoint: Checkpoint) -> Row:
    name = ", ".join(use.key for use in uses)
    wrong = [*checkpoint.faults, *(_misfits(uses, checkpoint.config) if checkpoint.config else ())]
    if not wrong:
        return Row(name, f"{reference}: {architecture_of(checkpoint.config)}, {checkpoint.place}")
    steps = checkpoint.steps if checkpoint.faults else ()
    found = f"{reference}: {'; '.join(wrong)}"
    if not any(use.trains for use in uses):
        return Row(name, f"{found} (training does not need it)", steps=steps)
    return Row(name, found, f"{found}; run `{steps[0]}`" if steps else found, steps)


def _examine_directory(directory: Path) -> Checkpoint:
    if not directory.is_dir():
        expected = "expected a directory that save_pretrained or `hf download --local-dir` wrote"
        return Checkpoint(str(directory), [f"no such directory; {expected}"], {}, ())
    faults, config = examine_files(in_directory(directory))
    return Checkpoint(f"in {directory}", faults, config, ())


def _examine_backbone(reference: Reference) -> Checkpoint:
    """A backbone of timm; it is built without its weights to say what it gives, where nothing has to be fetched."""
    from model.towers.timm_backbone import examine as examine_backbone  # these import torch, and timm
    from model.towers.timm_files import find_weights

    try:
        weights = find_weights(reference.text, reference)
        if weights.missing is not None and reference.hub_id is not None:
            return Checkpoint(weights.place, [weights.missing], {}, weights.steps)
        layout = examine_backbone(reference.text, reference).layout
    except UserError as error:
        return Checkpoint("nowhere", [str(error).removeprefix(f"{reference.text}: ")], {}, ())
    cells = f"{layout.grid} x {layout.grid} cells behind {layout.prefix} tokens"
    given = f"{layout.width} wide, {cells}, of {layout.reads.size} pixels"
    config = {"model_type": BACKBONE, "architectures": [given], "width": layout.width}
    faults = [] if weights.missing is None else [weights.missing]
    return Checkpoint(weights.place, faults, config, weights.steps)


def _examine_cache(hub_id: str, revision: str | None, keys: Sequence[str]) -> Checkpoint:
    find = in_cache(hub_id, revision)
    faults, config = examine_files(find)
    file = find(CONFIG)
    if file is None:
        faults = [f"not in the hub cache {constants.HF_HUB_CACHE}"]
    place = "not in the hub cache" if file is None else f"hub cache, revision {file.parent.name}, {file.parent}"
    return Checkpoint(place, faults, config, fetch_steps(hub_id, revision, keys))


def fetch_steps(hub_id: str, revision: str | None, keys: Sequence[str]) -> tuple[str, ...]:
    """The commands that bring a hub checkpoint here: with a network, then without."""
    download, name = fetch_command(hub_id, revision), hub_id.rpartition("/")[2]
    changes = " ".join(f"{key}=./{name}" for key in keys)
    return (
        download,
        f"{download} --local-dir {name}   # without a network: elsewhere, then copy {name}/ here",
        f"# and change the recipe: {changes}",
    )


def _misfits(uses: Sequence[Use], config: Mapping[str, Any]) -> Iterator[str]:
    found = architecture_of(config)
    for use in uses:
        if use.architectures and found not in use.architectures:
            yield f"is a {found}; {use.key} expects {' or '.join(use.architectures)}"


def cache_row() -> Row:
    """Where the hub's files are kept, and whether a start may ask for more."""
    offline = constants.HF_HUB_OFFLINE
    network = "HF_HUB_OFFLINE=1" if offline else "set HF_HUB_OFFLINE=1 where there is no network"
    there = "" if os.path.isdir(constants.HF_HUB_CACHE) else " (not there yet)"
    return Row("hub cache", f"{constants.HF_HUB_CACHE}{there}; {network}")
