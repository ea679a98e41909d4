"""What a recipe writes in the place of a checkpoint: this file alone reads it. Nothing is looked up.

scratch                      untrained, with the sizes of model.scratch
efficient_sam                as model.vision alone: the encoder of model.efficient_sam as first stream
Salesforce/blip-vqa-base     a checkpoint of transformers on the hub, with @REVISION to pin it
./weights/blip               a directory that save_pretrained wrote
timm:NAME or timm:NAME.TAG   a backbone of timm with the weights that timm has for it
timm:hf-hub:ORG/NAME         a backbone of timm from any repository of the hub, with @REVISION to pin it
timm:./weights/vit           a directory that timm.models.save_for_hf wrote
timm:...@scratch             any of these three, untrained
"""

import os
from pathlib import Path
from typing import NamedTuple

SCRATCH = "scratch"
EFFICIENT_SAM = "efficient_sam"
TIMM = "timm:"

_UNTRAINED = f"@{SCRATCH}"
_HUB, _LOCAL = "hf-hub:", "local-dir:"
"""timm's own schemes."""


class Reference(NamedTuple):
    """A reference, read: a directory, an id of the hub, a name that timm knows, or `scratch`."""

    text: str
    is_timm: bool
    is_untrained: bool
    directory: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    name: str | None = None
    """Of timm's registry, with its tag if there is one."""

    @property
    def timm_source(self) -> str:
        """What timm.create_model takes."""
        if self.directory is not None:
            return f"{_LOCAL}{self.directory}"
        if self.hub_id is not None:
            return f"{_HUB}{self.hub_id}" + (f"@{self.revision}" if self.revision else "")
        assert self.name is not None
        return self.name


def read_reference(text: str) -> Reference:
    """A reference of a recipe; whether there is anything behind it is not asked."""
    if text == SCRATCH:
        return Reference(text, is_timm=False, is_untrained=True)
    if not text.startswith(TIMM):
        directory = local_directory(text)
        if directory is not None:
            return Reference(text, is_timm=False, is_untrained=False, directory=directory)
        hub_id, revision = hub_reference(text)
        return Reference(text, is_timm=False, is_untrained=False, hub_id=hub_id, revision=revision)
    named = text.removeprefix(TIMM).removesuffix(_UNTRAINED)
    read = Reference(text, is_timm=True, is_untrained=text.endswith(_UNTRAINED))
    if named.startswith(_HUB):
        hub_id, revision = hub_reference(named.removeprefix(_HUB))
        return read._replace(hub_id=hub_id, revision=revision)
    directory = Path(os.path.expanduser(named.removeprefix(_LOCAL)))
    if named.startswith(_LOCAL) or (named and local_directory(named) is not None):
        return read._replace(directory=directory)
    return read._replace(name=named)


def timm_directory(directory: Path | str) -> str:
    """The reference of a directory with a backbone of timm."""
    return f"{TIMM}{directory}"


def local_directory(reference: str) -> Path | None:
    """The directory that a model reference names; None when it is `scratch` or a hub id.

    `/x`, `./x`, `../x` and `~/x` are directories whether they exist or not; anything else is one if it exists.
    """
    if reference == SCRATCH:
        return None
    path = Path(os.path.expanduser(reference))  # an unknown ~user stays as it is, where expanduser() would raise
    looks_local = reference.startswith(("/", "./", "../", "~"))
    return path if looks_local or path.is_dir() else None


def hub_reference(reference: str) -> tuple[str, str | None]:
    """(hub id, revision) of a reference that is a hub id; without `@revision` the revision is None."""
    hub_id, _, revision = reference.partition("@")
    return hub_id, revision or None
