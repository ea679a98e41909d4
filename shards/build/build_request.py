"""What a build of shards is asked for, checked before any work."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from shards.annotations import READERS
from shards.annotations.seam import Option
from shards.errors import ConfigError, DataError
from shards.format.index import Medium

OnMissing = Literal["fail", "skip"]
EngineName = Literal["local", "ray"]
SHARD_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What `duoflow shards build` is asked for."""

    format: str
    questions: Sequence[Path]
    out: Path
    images: Path | None = None
    """The directory of images; None for shards of regions."""
    regions: Sequence[Path] = ()
    """TSV files with the regions of the images, in place of their pixels."""
    scene_graphs: Path | None = None
    annotations: Sequence[Path] = ()
    ocr: Sequence[Path] = ()
    """IMDB files with the words of pages."""
    limit: int | None = None
    """At most so many images: the first by id."""
    workers: int = 0
    """Processes that decode images; the result does not depend on it. On a cluster: parts at a time, 0 for all CPUs."""
    on_missing: OnMissing = "fail"
    balanced_only: bool = False
    resize: int | None = None
    """Bring the short side down to so many pixels; None keeps the files as they are."""
    shard_bytes: int = SHARD_BYTES
    lowercase_answers: bool = False
    """Write answers in lower case and with single spaces, the only form that a generated answer is compared in."""
    show_progress: bool = False
    engine: EngineName = "local"
    """Where images are decoded; the result does not depend on it."""
    ray_address: str | None = None
    """HOST:PORT of the Ray cluster; None takes RAY_ADDRESS, or the cluster of this machine."""

    def __post_init__(self) -> None:
        if self.format not in READERS:
            raise ConfigError(f"--format {self.format}: no such format; expected one of {', '.join(READERS)}")
        if self.on_missing not in ("fail", "skip"):
            raise ConfigError(f"--on-missing {self.on_missing}: expected fail or skip")
        if self.engine not in get_args(EngineName):
            raise ConfigError(f"--engine {self.engine}: expected {' or '.join(get_args(EngineName))}")
        if self.ray_address is not None and self.engine != "ray":
            raise ConfigError(f"--ray-address {self.ray_address}: belongs to --engine ray")
        for name, least in (("limit", 1), ("resize", 1), ("workers", 0), ("shard_bytes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
        for option in get_args(Option):
            if getattr(self, option) and option not in READERS[self.format].options:
                formats = [name for name, reader in READERS.items() if option in reader.options]
                raise ConfigError(
                    f"--{option.replace('_', '-')}: belongs to --format {' or '.join(formats)}, not to {self.format}"
                )
        if not self.questions:
            raise ConfigError("--questions: no files given")
        if (self.images is None) == (not self.regions):
            found = "neither was given" if self.images is None else "both were given"
            raise ConfigError(f"--images DIR or --regions TSV: {found}; a split has pixels, or regions in their place")
        if self.regions and self.resize is not None:
            raise ConfigError(f"--resize {self.resize}: regions have no pixels; leave it out")
        if self.images is not None and not self.images.is_dir():
            raise DataError(f"--images {self.images}: no such directory")

    @property
    def medium(self) -> Medium:
        """What the images are to be packed as."""
        return "regions" if self.regions else "pixels"

    @property
    def beside(self) -> list[Path]:
        """The files that lie beside the question files."""
        return [*([self.scene_graphs] if self.scene_graphs is not None else []), *self.annotations, *self.ocr]

    def from_anywhere(self) -> "BuildRequest":
        """The same with absolute paths: a worker on another node has another working directory."""
        return replace(
            self,
            out=self.out.absolute(),
            images=None if self.images is None else self.images.absolute(),
            regions=[path.absolute() for path in self.regions],
        )

    def options(self) -> dict[str, str | int | bool | None]:
        """What changes the content of the shards, beside the input."""
        options: dict[str, str | int | bool | None] = {
            "balanced_only": self.balanced_only,
            "limit": self.limit,
            "on_missing": self.on_missing,
            "resize": self.resize,
            "shard_bytes": self.shard_bytes,
        }
        if self.lowercase_answers:  # named only where it is asked for: an index without it keeps its bytes
            options["lowercase_answers"] = True
        if self.ocr:
            options["ocr"] = True
        return options
