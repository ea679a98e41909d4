"""What an export says of itself: which part lies where, what it needs that is not in it, and the model that both make.

Light: nothing is loaded and no digest is computed here.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from model.config import EfficientSamConfig, ModelConfig
from model.references import TIMM, read_reference, timm_directory
from shards.errors import DataError

EXPORT_FILE, MANIFEST, RECIPE = "export.json", "manifest.json", "config.yaml"
FORMAT = 1
"""Of the manifest."""
SAM_KEY = "model.efficient_sam.checkpoint"


class Frozen(NamedTuple):
    """A checkpoint that an export needs and did not train."""

    reference: str
    """As the recipe has it."""
    revision: str | None
    """The commit that was in use, of one that comes from the hub."""
    place: str
    """Where its files lay when the export was written."""
    files: dict[str, str]
    """sha256 by name."""
    inside: str | None = None
    """Where the export has it, from its own directory; None if it is by reference alone."""


class Manifest(NamedTuple):
    """What has to be where for an export to be the one that was written."""

    files: dict[str, str]
    """sha256 of every file of the export but this one, by its path in it."""
    frozen: dict[str, Frozen]
    """By the key of the recipe that names it."""


def export_of(path: Path) -> Path:
    """The export that is meant by a run's directory, or by an export itself."""
    return path if (path / EXPORT_FILE).is_file() else path / "export"


def read_export(directory: Path) -> dict[str, Any]:
    """What `export.json` says.

    Raises:
        DataError: there is no export in the directory, or it is damaged.
    """
    try:
        return json.loads((directory / EXPORT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{directory}: no export; it is written when the first validation, or the run, is done: "
            "run the same `duoflow train` command again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{directory / EXPORT_FILE}: not readable ({error})") from None


def read_manifest(directory: Path) -> Manifest:
    """What `manifest.json` says.

    Raises:
        DataError: there is none, since the export was written before there were any; or it is damaged.
    """
    path = directory / MANIFEST
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["format"] != FORMAT:
            raise DataError(f"{path}: of format {tree['format']}, expected {FORMAT}; read it with a newer duoflow")
        manifest = Manifest(dict(tree["files"]), {key: Frozen(**entry) for key, entry in tree["frozen"].items()})
        inside = [entry.inside for entry in manifest.frozen.values() if entry.inside is not None]
        if outside := [name for name in (*manifest.files, *inside) if not _is_below(name)]:
            raise DataError(f"{path}: names {outside[0]!r}, which lies outside of the export; take it from elsewhere")
        return manifest
    except FileNotFoundError:
        read_export(directory)  # nothing at all is another fault
        raise DataError(
            f"{directory}: of an older duoflow, without {MANIFEST}, and does not stand alone; "
            f"{way_to_a_new_one(directory)}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: damaged ({type(error).__name__}: {error}); copy the export again; {way_to_a_new_one(directory)}"
        ) from None


def has_old_export(directory: Path) -> bool:
    """Whether there is an export that does not stand alone: a run that is done writes it anew."""
    return (directory / EXPORT_FILE).is_file() and not (directory / MANIFEST).is_file()


def value_of(model: ModelConfig, key: str) -> str | None:
    """What the model section has for a key of the manifest."""
    return model.efficient_sam.checkpoint if key == SAM_KEY else getattr(model, key.removeprefix("model."))


def with_frozen(model: ModelConfig, directory: Path, manifest: Manifest) -> ModelConfig:
    """A model section whose frozen checkpoints are those of an export: inside of it, or pinned, or where they lay.

    What the section names in another way than the recipe of the export did stays.
    """
    for key, frozen in manifest.frozen.items():
        if value_of(model, key) == frozen.reference:
            model = _with(model, key, _found(frozen, directory))
    return model


def with_parts(model: ModelConfig, directory: Path, content: Mapping[str, Any]) -> ModelConfig:
    """A model section with the references of trained parts pointing into an export.

    Args:
        content: of its `export.json`.
    """
    parts = {part: str((directory / name).resolve()) for part, name in content["parts"].items()}
    second = parts.pop("second_stream", None)
    changes: dict[str, Any] = dict(parts)
    if "vision" in changes and read_reference(model.vision).is_timm:
        changes["vision"] = timm_directory(changes["vision"])
    if second is not None and model.second_stream in ("blip", "timm"):
        changes["second_vision"] = timm_directory(second) if model.second_stream == "timm" else second
    elif second is not None:
        changes["efficient_sam"] = EfficientSamConfig(checkpoint=second, variant="custom")
    return model.model_copy(update=changes)


def model_in(model: ModelConfig, directory: Path) -> ModelConfig:
    """A model section with every reference leading to what an export holds or needs: no key has to be known.

    Raises:
        DataError: there is no whole export in the directory.
    """
    return with_parts(with_frozen(model, directory, read_manifest(directory)), directory, read_export(directory))


def way_to_a_new_one(directory: Path) -> str:
    """What makes an export whole that is of an older duoflow, for a message."""
    if (directory.parent / RECIPE).is_file():
        return f"`duoflow train {directory.parent / RECIPE}` writes it anew from the best checkpoint"
    return "`duoflow train RUN/config.yaml` writes that of its run anew, and `duoflow export RUN --out DIR` copies it"


def _is_below(name: str) -> bool:
    """Whether a path leads to something below its directory: what others made may say anything."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _found(frozen: Frozen, directory: Path) -> str:
    read, place = read_reference(frozen.reference), Path(frozen.place)
    if frozen.inside is not None:
        inside = str((directory / frozen.inside).resolve())
        return timm_directory(inside) if read.is_timm else inside
    if frozen.revision is not None:
        pins = read.hub_id is not None and read.revision is None
        return f"{frozen.reference}@{frozen.revision}" if pins else frozen.reference
    # A path, but for the file of timm's that its name leads to; as the recipe has it, it may count from elsewhere.
    by_name = read.is_timm and place.is_file()
    if by_name or Path(frozen.reference.removeprefix(TIMM)).expanduser().exists() or not place.exists():
        return frozen.reference
    return timm_directory(place) if read.is_timm else frozen.place


def _with(model: ModelConfig, key: str, value: str) -> ModelConfig:
    if key == SAM_KEY:
        return model.model_copy(update={"efficient_sam": model.efficient_sam.model_copy(update={"checkpoint": value})})
    return model.model_copy(update={key.removeprefix("model."): value})
