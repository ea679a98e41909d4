"""Where the weights of a backbone of timm come from, what of it is there, and how to get the rest: nothing is built.

timm is imported by what is called here and not before: it takes seconds, and few recipes name it.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlparse

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from model.references import SCRATCH, TIMM, Reference
from model.towers.checkpoint_files import CONFIG, in_cache, is_damaged, is_hub_id, short_reason
from shards.errors import ConfigError, DataError

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""Of a directory or a repository: the first that is there is read, as timm does."""

DIRECTORY = f"a directory that timm.models.save_for_hf wrote ({CONFIG} and {WEIGHTS[0]})"


class Weights(NamedTuple):
    """The trained weights of a backbone."""

    place: str
    """Where they lie, or would."""
    missing: str | None
    """What is missing or damaged; None if they can be loaded."""
    steps: tuple[str, ...] = ()
    """Commands that get them (again); none for a directory, which nothing can fetch."""
    is_damaged: bool = False


def library() -> ModuleType:
    """The package.

    Raises:
        ConfigError: it is not there, or does not fit the torch that is.
    """
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:  # torchvision of another torch raises all three
        raise ConfigError(
            f"timm: the package timm cannot be imported ({short_reason(error)}); run `pip install timm`"
        ) from None
    return timm


def check_name(said: str, reference: Reference) -> None:
    """Whether timm knows what a reference names; nothing is looked for on the hub.

    Args:
        said: `key=reference`, for errors.

    Raises:
        ConfigError: it does not; or it has no weights of that name, and the reference is not an untrained one.
        DataError: a directory that is none of timm's.
    """
    if reference.directory is not None:
        name = _architecture_in(said, reference.directory)
        if not library().is_model(name):
            near = _nearest(name, library().list_models())
            raise ConfigError(
                f"{said}: {reference.directory / CONFIG} names the architecture {name}, which timm "
                f"{library().__version__} does not have{near}; a newer timm may (`pip install -U timm`)"
            )
    elif reference.hub_id is not None:
        if not is_hub_id(reference.hub_id):
            raise ConfigError(f"{said}: {reference.hub_id} is no hub id (OWNER/NAME or OWNER/NAME@REVISION)")
    else:
        _check_registered(said, reference)


def find_weights(said: str, reference: Reference) -> Weights:
    """The weights of a reference on this machine; nothing is fetched.

    Raises:
        ConfigError, DataError: as `check_name`, which comes first.
    """
    check_name(said, reference)
    if reference.directory is not None:
        return _in_directory(reference.directory, reference.is_untrained)
    repository = _Repository.of(reference)
    if repository is not None:
        return repository.weights()
    return Weights(f"timm {library().__version__}", None) if reference.is_untrained else _at_url(reference)


def files_behind(said: str, reference: Reference) -> tuple[Path, ...]:
    """The files of a reference that are on this machine; none where its weights are not.

    Raises:
        ConfigError, DataError: as `check_name`.
    """
    check_name(said, reference)
    repository = _Repository.of(reference)
    if reference.directory is not None:
        names: tuple[tuple[str, ...], ...] = ((CONFIG,), WEIGHTS)
        found = [
            next((reference.directory / name for name in some if (reference.directory / name).is_file()), None)
            for some in names
        ]
    elif repository is not None:
        find = in_cache(repository.hub_id, repository.revision)
        found = [next(filter(None, map(find, some)), None) for some in repository.files]
    else:
        file = _url_file(reference)[1]
        found = [file if file.is_file() else None]
    return tuple(path for path in found if path is not None) if None not in found else ()


def fetch(said: str, reference: Reference) -> None:
    """Bring the files of a reference here, where they are on the hub and not in its cache.

    Raises:
        ConfigError: timm does not know it.
        DataError: it is not there and cannot be fetched, or damaged.
    """
    weights, repository = find_weights(said, reference), _Repository.of(reference)
    if weights.missing is None:
        return
    if reference.directory is not None:
        raise DataError(f"{said}: {weights.missing}; expected {DIRECTORY}")
    reason = "HF_HUB_OFFLINE=1" if constants.HF_HUB_OFFLINE else None
    try:
        if repository is not None and reason is None and not weights.is_damaged:
            repository.download()
            return
    except Exception as error:  # no network, no such repository, no right to it: the hub's client fails in many ways
        reason = short_reason(error)
    if weights.is_damaged:
        raise DataError(f"{said}: {weights.missing}; fetch it again: `{weights.steps[0]}`")
    if reason is not None:
        raise DataError(
            f"{said}: {weights.missing}, and not to be fetched ({reason}); run `{weights.steps[0]}` on a machine with "
            "a network; `duoflow doctor RECIPE` names all that is missing"
        )


def read_config(said: str, directory: Path) -> Mapping[str, Any]:
    """config.json of a directory.

    Raises:
        DataError: it is missing, damaged, or not timm's.
    """
    file = directory / CONFIG
    if not file.is_file():
        found = f"has no {CONFIG}" if directory.is_dir() else "is no directory"
        raise DataError(f"{said}: {directory} {found}; expected {DIRECTORY}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{said}: {file}: damaged ({short_reason(error)}); expected {DIRECTORY}") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise DataError(f"{said}: {file}: names no architecture of timm; expected {DIRECTORY}")
    return config


def _architecture_in(said: str, directory: Path) -> str:
    return read_config(said, directory)["architecture"]


def _check_registered(said: str, reference: Reference) -> None:
    name, timm = reference.name or "", library()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = _nearest(architecture, timm.list_models())
        hub = f"; a hub id is written {TIMM}hf-hub:OWNER/NAME, a directory {TIMM}./DIR" if "/" in name else ""
        raise ConfigError(f"{said}: timm {timm.__version__} has no backbone {architecture or '(no name)'}{near}{hub}")
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        known = f"its tags: {', '.join(tags)}" if tags else "it has none"
        raise ConfigError(f"{said}: timm has no weights {tag} of {architecture}{_nearest(tag, tags)}; {known}")
    if not tags and not reference.is_untrained and not _has_weights(reference):
        raise ConfigError(f"{said}: timm has no weights of {architecture}; write {TIMM}{name}@{SCRATCH} to train it")


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def _has_weights(reference: Reference) -> bool:
    config = library().models.get_pretrained_cfg(reference.name)
    return config is not None and config.has_weights


def _in_directory(directory: Path, is_untrained: bool) -> Weights:
    if is_untrained:
        return Weights(f"in {directory}", None)
    file = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if file is None:
        return Weights(f"in {directory}", f"{directory} has no weights ({' or '.join(WEIGHTS[:2])})")
    damaged = _is_damaged(file)
    return Weights(f"in {directory}", f"{file} is damaged" if damaged else None, is_damaged=damaged)


def _is_damaged(file: Path) -> bool:
    return file.suffix == ".safetensors" and is_damaged(file)


class _Repository(NamedTuple):
    """Where on the hub the files of a backbone are."""

    hub_id: str
    revision: str | None
    files: tuple[tuple[str, ...], ...]
    """Those that are needed, each under the names that it can have."""

    @classmethod
    def of(cls, reference: Reference) -> "_Repository | None":
        """That of a reference; None if its files are not on the hub, or none are needed."""
        if reference.hub_id is not None:
            files = ((CONFIG,),) if reference.is_untrained else ((CONFIG,), WEIGHTS)
            return cls(reference.hub_id, reference.revision, files)
        if reference.directory is not None or reference.is_untrained:
            return None
        config = library().models.get_pretrained_cfg(reference.name)
        if not config.hf_hub_id:
            return None
        hub_id, _, revision = config.hf_hub_id.partition("@")
        return cls(hub_id, revision or None, ((config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS,))

    def weights(self) -> Weights:
        """What of it is in the cache."""
        find = in_cache(self.hub_id, self.revision)
        found = [next(filter(None, map(find, names)), None) for names in self.files]
        missing = [names[0] for names, file in zip(self.files, found, strict=True) if file is None]
        if missing:
            lacking = f"no {' and no '.join(missing)} in the hub cache {constants.HF_HUB_CACHE}"
            return Weights(f"hub, {self.hub_id}", lacking, (self._command, self._elsewhere))
        file = next(file for file in reversed(found) if file is not None)
        place = f"hub cache, revision {file.parent.name}, {file.parent}"
        if _is_damaged(file):
            return Weights(place, f"{file} is damaged", (f"{self._command} --force-download",), is_damaged=True)
        return Weights(place, None, (self._command, self._elsewhere))

    def download(self) -> None:
        """Bring the files into the cache."""
        for names in self.files:
            for name in names:
                try:
                    hf_hub_download(self.hub_id, name, revision=self.revision)
                    break
                except EntryNotFoundError as error:
                    if name == names[-1] or isinstance(error, LocalEntryNotFoundError):  # the latter: no network
                        raise

    @property
    def _command(self) -> str:
        at = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.hub_id} {' '.join(dict.fromkeys([CONFIG, *(names[0] for names in self.files)]))}{at}"

    @property
    def _elsewhere(self) -> str:
        name = self.hub_id.rpartition("/")[2]
        return f"{self._command} --local-dir {name}   # without a network: elsewhere, then write {TIMM}./{name}"


def _at_url(reference: Reference) -> Weights:
    """The few weights that are not on the hub: timm asks torch for them."""
    url, file = _url_file(reference)
    if file.is_file():
        return Weights(str(file), None)
    return Weights(url, f"no {file}", (f"curl -L --create-dirs -o {file} {url}",))


def _url_file(reference: Reference) -> tuple[str, Path]:
    """Where such weights come from, and where torch keeps them."""
    import torch.hub

    url = library().models.get_pretrained_cfg(reference.name).url
    return url, Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(url).path)
