"""The manifest of an export: written over all of its files, and checked whenever it is loaded.

manifest.json   format; sha256 of every other file; for each frozen checkpoint its reference, revision and digests
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from model.config import text_towers, uses_efficient_sam, vision_references
from model.references import read_reference
from model.towers.checkpoint_files import files_behind
from model.towers.timm_files import files_behind as timm_files_behind
from shards.errors import DataError
from shards.tasks import TASKS
from trainer.config import RunConfig
from trainer.config.exported import FORMAT, MANIFEST, SAM_KEY, Frozen, Manifest, read_manifest, value_of
from trainer.run_directory import write_json

FROZEN = "frozen"
"""Directory of an export for frozen checkpoints."""
CARD = "README.md"


def frozen_behind(config: RunConfig, parts: Mapping[str, str]) -> dict[str, Frozen]:
    """What an export needs and does not hold, by the key of the recipe that names it.

    Args:
        parts: those that the export holds.

    Raises:
        OSError: a file cannot be read.
    """
    found = {}
    for key, reference in _references(config, parts):
        files = _files(key, reference)
        if not files:
            continue  # an EfficientSAM that nothing has read
        by_name = dict(sorted(files.items()))
        first = next(iter(by_name.values()))
        snapshot = first.parent.parent.name == "snapshots"  # of the hub's cache: its name is the commit
        place = first if key == SAM_KEY else first.parent
        digests = {name: digest(path) for name, path in by_name.items()}
        found[key] = Frozen(reference, first.parent.name if snapshot else None, str(place.absolute()), digests)
    return found


def seal(directory: Path, frozen: Mapping[str, Frozen]) -> None:
    """Write the manifest of an export as it is now."""
    files = {str(path.relative_to(directory)): digest(path) for path in _files_of_export(directory)}
    entries = {key: entry._asdict() for key, entry in frozen.items()}
    write_json(directory / MANIFEST, {"format": FORMAT, "files": files, "frozen": entries})


def verified(directory: Path, *, but: tuple[str, ...] = ()) -> Manifest:
    """The manifest of an export whose files are those that were written.

    Args:
        but: files that may have changed.

    Raises:
        DataError: there is no export, or a file of it is missing or is another one.
    """
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items():
        path = directory / name
        if name in but:
            continue
        if not path.is_file():
            raise DataError(f"{path}: is missing, and belongs to this export; copy the export again, all of its files")
        if (found := digest(path)) != expected:
            raise DataError(
                f"{path}: is not the file that was exported (sha256 {found[:12]}..., expected {expected[:12]}...): "
                f"damaged, or of another run; {_way_out(name)}"
            )
    return manifest


def check_frozen(config: RunConfig, manifest: Manifest) -> tuple[str, ...]:
    """Whether the frozen checkpoints that a recipe names are those that an export was trained over.

    Returns:
        Keys of those that are not on this machine yet, and can be fetched.

    Raises:
        DataError: one is another, or is nowhere.
    """
    absent = []
    for key, frozen in manifest.frozen.items():
        reference = value_of(config.model, key)
        if frozen.inside is not None or reference is None:
            continue  # its files are those of the export
        files = _files(key, reference)
        if not files and frozen.revision is None and not (key == SAM_KEY and not uses_efficient_sam(config.model)):
            raise DataError(
                f"{key}: {reference} is not here, and the export needs it; give {key}=PLACE, where it lies, or take an "
                "export that has it (`duoflow export RUN --out DIR --with-frozen`)"
            )
        if not files:
            absent.append(key)
            continue
        for name, expected in frozen.files.items():
            path = files.get(name)
            if path is None or (found := digest(path)) != expected:
                fault = "is missing" if path is None else f"has sha256 {found[:12]}..., expected {expected[:12]}..."
                raise DataError(
                    f"{key}: {reference} is not what this export was trained over: {name} {fault}; give {key}=PLACE, "
                    "where the right one lies"
                )
    return tuple(absent)


def copy_frozen(
    config: RunConfig, manifest: Manifest, directory: Path, save_timm: Callable[[str, Path], None]
) -> Manifest:
    """Put what is frozen into an export; gives a manifest that says so.

    Args:
        config: of the export, its references leading to what is here.
        directory: the copy of the export.
        save_timm: writes the backbone of timm that a key names into a directory.
    """
    changed, places = {}, {}
    for key, frozen in manifest.frozen.items():
        reference = value_of(config.model, key)
        if frozen.inside is not None or reference is None:
            changed[key] = frozen
            continue
        inside = places.get(reference)
        if inside is None:
            inside = places[reference] = f"{FROZEN}/{key.removeprefix('model.').partition('.')[0]}"
            target = directory / inside
            if read_reference(reference).is_timm:
                save_timm(key, target)
            else:
                files = _files(key, reference)
                target.mkdir(parents=True)
                for name, path in files.items():
                    shutil.copyfile(path, target / name)
                if key == SAM_KEY:
                    inside = places[reference] = f"{inside}/{next(iter(files))}"
        changed[key] = frozen._replace(inside=inside)
    return manifest._replace(frozen=changed)


def digest(path: Path) -> str:
    """sha256 of a file, computed once for as long as the file stays as it is."""
    seen = path.stat()
    return _digest(str(path.absolute()), seen.st_size, seen.st_mtime_ns, seen.st_ino)


@lru_cache(maxsize=4096)
def _digest(path: str, *_: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _references(config: RunConfig, parts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    model = config.model
    if model.vlm is not None:
        yield from [("model.vlm", model.vlm)] if "vlm" not in parts else []
        return
    if model.retrieval is not None:
        return  # is whole
    if model.reader is not None:
        yield from [("model.answer", model.answer)] if "answer" not in parts else []
        return
    used = text_towers(TASKS[config.task], config.losses)
    named = {tower: (f"model.{tower}", getattr(model, tower)) for tower in ("match", "answer") if tower in used}
    for tower, (key, reference) in (vision_references(model) | named).items():
        if tower not in parts and not read_reference(reference).is_untrained:
            yield key, reference
    if model.efficient_sam.checkpoint is not None:  # also of a trained one: what makes masks is in there alone
        yield SAM_KEY, model.efficient_sam.checkpoint


def _files(key: str, reference: str) -> dict[str, Path]:
    """The files behind a reference, by name; empty where they are not on this machine."""
    if key == SAM_KEY:
        path = Path(reference).expanduser()
        return {path.name: path} if path.is_file() else {}
    read = read_reference(reference)
    paths = timm_files_behind(f"{key}={reference}", read) if read.is_timm else files_behind(read)
    return {path.name: path for path in paths}


def _files_of_export(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path != directory / MANIFEST:
            yield path


def _way_out(name: str) -> str:
    if name == CARD:
        return "`duoflow export DIR --out OTHER` takes a card that was edited into a copy"
    return "copy the export again, or `duoflow export RUN --out DIR` makes a new one"
