"""Whether a directory already holds what a build would make: the same annotations, options and images."""

import hashlib
import os
from collections.abc import Sequence
from heapq import merge
from pathlib import Path

from shards.build.build_request import BuildRequest
from shards.build.engine import Engine
from shards.build.media import open_medium
from shards.build.packing import Source as ImageSource
from shards.errors import DataError
from shards.format.index import Source, SplitIndex
from shards.progress import Progress


def hash_sources(request: BuildRequest, files: Sequence[Path]) -> list[Source]:
    """Every annotation file with its digest, sorted: the order on the command line means nothing."""
    sources = []
    for path in [*files, *request.beside]:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        sources.append(Source(name=path.name, bytes=size, sha256=digest))
    return sorted(sources, key=lambda source: (source.name, source.sha256))


def refuse_another(present: SplitIndex, sources: list[Source], request: BuildRequest) -> None:
    """The directory must hold nothing, or this very data set."""
    found = {"format": present.reader, "medium": present.medium, **present.options}
    asked = {"format": request.format, "medium": request.medium, **request.options()}
    changes = [
        f"{name} {found.get(name, False)} there, {asked.get(name, False)} asked"
        for name in {**asked, **found}
        if found.get(name, False) != asked.get(name, False)  # a flag that was not given may not be named at all
    ]
    if present.sources != sources:
        there, asked_for = ([f"{s.name} ({s.sha256[:8]})" for s in side] for side in (present.sources, sources))
        changes.append(f"built from {', '.join(there)}, asked from {', '.join(asked_for)}")
    if changes:
        raise DataError(
            f"{request.out}: holds another data set: {'; '.join(changes)}; choose another --out, or remove it"
        )


def is_whole(index: SplitIndex, directory: Path) -> bool:
    """Whether every shard is there in its size; `duoflow shards verify` looks at the bytes."""
    for shard in index.shards:
        path = directory / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            return False
    return True


def images_digest(index: SplitIndex, request: BuildRequest, engine: Engine) -> str:
    """The digest over the source images as they are now; the packed and the skipped ones, by image id."""
    packed = (
        (sample_id, tuple(refs[image] for image in shard.images_of(position)))
        for shard in index.shards
        for refs in [shard.image_refs or shard.image_ids]
        for position, sample_id in enumerate(shard.image_ids)
    )
    skipped = ((skip.image_id, tuple(skip.image_refs or [skip.image_ref])) for skip in index.skipped)
    named = list(merge(packed, skipped))
    medium = open_medium(request, (ref for _, refs in named for ref in refs))
    samples = [ImageSource(sample_id, tuple(map(medium.origin, refs))) for sample_id, refs in named]
    digest = hashlib.sha256()
    with Progress("comparing images", len(samples), "images", show=request.show_progress) as progress:
        for lines in engine.fingerprints(samples):
            digest.update(lines.encode())
            progress.advance()
    return digest.hexdigest()
