"""The files of a split as its task hands them out, and shards of them."""

from dataclasses import dataclass
from pathlib import Path

from shards.build.writer import build_shards
from tests.corpora import SMALL_SHARD


@dataclass(frozen=True)
class Official:
    """The files of a split as its task hands them out."""

    format: str
    images: Path | None
    questions: tuple[Path, ...]
    annotations: tuple[Path, ...] = ()
    regions: tuple[Path, ...] = ()

    def words(self, out: Path) -> list[str]:
        """`duoflow shards build` of these files."""
        shown = ["--regions", *map(str, self.regions)] if self.regions else ["--images", str(self.images)]
        words = ["shards", "build", "--format", self.format, *shown, "--out", str(out)]
        words += ["--questions", *map(str, self.questions), "--workers", "1", "--shard-bytes", str(SMALL_SHARD)]
        return [*words, *(["--annotations", *map(str, self.annotations)] if self.annotations else [])]

    def build(self, out: Path) -> Path:
        """Shards of these files, several of them; returns their directory."""
        files = {"questions": self.questions, "annotations": self.annotations}
        shown = {"images": self.images, "regions": self.regions}
        build_shards(format=self.format, out=out, shard_bytes=SMALL_SHARD, **shown, **files)
        return out
