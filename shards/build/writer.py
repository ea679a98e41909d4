"""Annotations and images become a directory of shards: read, group by image on disk, pack, publish."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from msgspec import UNSET

from shards.annotations import READERS
from shards.build.build_request import SHARD_BYTES, BuildRequest, EngineName, OnMissing
from shards.build.columns import make_columns
from shards.build.engine import Engine, open_engine
from shards.build.grouping import Grouping
from shards.build.media import Medium, open_medium
from shards.build.output_directory import claimed, discard_unfinished, present_index, publish, staging_in
from shards.build.packing import Packed, Task, Unusable
from shards.build.packing import Source as ImageSource
from shards.build.same_input import hash_sources, images_digest, is_whole, refuse_another
from shards.build.tally import summarise
from shards.build.tar_writer import TarShards
from shards.errors import DataError
from shards.format.columns import COLUMNS_NAME
from shards.format.images import MissingImage
from shards.format.index import RegionShape, Shard, SkippedImage, Source, SplitIndex, read_index
from shards.format.records import Kind, with_lowercase_answer
from shards.progress import Progress


class Built(NamedTuple):
    """The outcome of a build."""

    index: SplitIndex
    is_new: bool
    """False: the same shards were there already, and nothing was written."""


def build_shards(
    *,
    format: str,
    questions: Sequence[Path],
    out: Path,
    images: Path | None = None,
    regions: Sequence[Path] = (),
    scene_graphs: Path | None = None,
    annotations: Sequence[Path] = (),
    ocr: Sequence[Path] = (),
    limit: int | None = None,
    workers: int = 0,
    on_missing: OnMissing = "fail",
    balanced_only: bool = False,
    resize: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    lowercase_answers: bool = False,
    show_progress: bool = False,
    engine: EngineName = "local",
    ray_address: str | None = None,
) -> SplitIndex:
    """Build a directory of shards and return its index; with the same shards already there, do nothing.

    The parameters are those of `BuildRequest`. With more than one worker, call it from a module that is safe to import
    (`if __name__ == "__main__":`), as for every use of multiprocessing.

    Raises:
        UserError: annotations, images or the output directory are not what they should be; nothing is left behind.
    """
    request = BuildRequest(
        format=format,
        questions=questions,
        out=out,
        images=images,
        regions=regions,
        scene_graphs=scene_graphs,
        annotations=annotations,
        ocr=ocr,
        limit=limit,
        workers=workers,
        on_missing=on_missing,
        balanced_only=balanced_only,
        resize=resize,
        shard_bytes=shard_bytes,
        lowercase_answers=lowercase_answers,
        show_progress=show_progress,
        engine=engine,
        ray_address=ray_address,
    )
    return build(request).index


def build(request: BuildRequest) -> Built:
    """Carry out a request; see `build_shards`."""
    if request.engine != "local":
        request = request.from_anywhere()
    files = READERS[request.format].expand(request.questions)
    request = replace(request, format=READERS[request.format].settle(files) or request.format)
    with open_engine(request) as engine:
        return _build(request, files, engine)


def _build(request: BuildRequest, files: list[Path], engine: Engine) -> Built:
    sources = hash_sources(request, files)
    try:
        with claimed(request.out):
            present = present_index(request.out)
            if present is not None and _is_same(present, sources, request, engine):
                with suppress(OSError):  # the shards are right, even where nothing can be tidied up beside them
                    discard_unfinished(request.out)
                return Built(present, False)
            with staging_in(request.out) as staging:
                return Built(_write(request, files, sources, staging, engine), True)
    except sqlite3.Error as error:
        raise _cannot_write(request.out, request.out, str(error)) from None
    except OSError as error:
        raise _cannot_write(request.out, error.filename or request.out, error.strerror or str(error)) from None


def _is_same(present: SplitIndex, sources: list[Source], request: BuildRequest, engine: Engine) -> bool:
    """Whether nothing is left to do. Only reads: finished shards may lie on a disk that cannot be written."""
    refuse_another(present, sources, request)
    return is_whole(present, request.out) and images_digest(present, request, engine) == present.images_sha256


def _cannot_write(out: Path, place: str | Path, reason: str) -> DataError:
    return DataError(
        f"{place}: {reason}; nothing was changed; see that {out} is a directory with room that can be written, or "
        "choose another --out"
    )


def _write(
    request: BuildRequest, files: list[Path], sources: list[Source], staging: Path, engine: Engine
) -> SplitIndex:
    with Grouping(staging / "questions.sqlite", READERS[request.format].join) as grouping:
        left_out = read_and_group(request, files, grouping, staging)
        result = _pack_all(request, grouping, staging, engine)
    index = _index(request, sources, result, left_out)
    make_columns(staging / COLUMNS_NAME, staging, index, workers=request.workers, show_progress=request.show_progress)
    publish(request.out, index)
    return read_index(request.out)


def read_and_group(request: BuildRequest, files: list[Path], grouping: Grouping, scratch: Path) -> dict[str, int]:
    """Read every annotation file into the grouping and seal it.

    Args:
        request: the build.
        files: the annotation files.
        grouping: where the questions go.
        scratch: a directory for a temporary file.

    Returns:
        How many questions were left out: duplicate_questions, unbalanced_questions.
    """
    reader = READERS[request.format]
    total = sum(path.stat().st_size for path in [*files, *request.beside])
    unbalanced = 0
    with (
        Progress("reading annotations", total, "bytes", show=request.show_progress) as progress,
        closing(reader.beside(request.beside, scratch / "beside.sqlite", progress.advance)) as beside,
    ):
        for number, path in enumerate(files):
            for annotation in reader.read(path, beside, progress.advance):
                if request.balanced_only and not annotation.item.is_balanced:
                    unbalanced += 1
                    continue
                if request.lowercase_answers:
                    annotation = annotation._replace(item=with_lowercase_answer(annotation.item))
                grouping.add(annotation, number)
        beside.finish()
    return {"duplicate_questions": grouping.seal(files), "unbalanced_questions": unbalanced}


class _Result(NamedTuple):
    shards: list[Shard]
    skipped: list[SkippedImage]
    kinds: Counter[Kind]
    images_sha256: str
    regions: RegionShape | None


def _pack_all(request: BuildRequest, grouping: Grouping, staging: Path, engine: Engine) -> _Result:
    medium = open_medium(request, (ref for _, refs in _checked(request, grouping) for ref in refs))
    total = _check_images(request, grouping, medium)
    tars = TarShards(staging, request.shard_bytes)
    skipped: list[SkippedImage] = []
    kinds: Counter[Kind] = Counter()
    digest = hashlib.sha256()
    try:
        with Progress("packing", total, "images", show=request.show_progress) as progress:
            for packed in _packed(request, grouping, medium, staging, engine):
                digest.update(packed.fingerprint.encode())
                progress.advance()
                if isinstance(packed, Unusable):
                    skipped.append(_skip(packed, request.on_missing))
                    continue
                kinds.update(packed.kinds)
                tars.add(packed.sample)
        tars.close()
    finally:
        tars.abandon()
    if not tars.shards:
        places = ", ".join(map(str, request.regions or [request.images]))
        raise DataError(f"{places}: none of {len(skipped)} images can be used; first: {skipped[0].image_ref!r}")
    return _Result(tars.shards, skipped, kinds, digest.hexdigest(), medium.shape)


def _checked(request: BuildRequest, grouping: Grouping) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(sample id, files of its images) of all that may be packed."""
    return islice(grouping.refs(), request.limit if request.on_missing == "fail" else None)


def _check_images(request: BuildRequest, grouping: Grouping, medium: Medium) -> int:
    """The number of images; with on_missing fail, every one of them is there: minutes before hours."""
    total = missing = 0
    first: MissingImage | None = None
    for sample_id, refs in _checked(request, grouping):
        total += 1
        for ref in refs if request.on_missing == "fail" else ():
            try:
                medium.require(ref)
            except MissingImage as error:
                missing += 1
                first = first or MissingImage(f"{error} (image {sample_id!r})")
    if first is not None:
        raise DataError(f"{first}; missing are {missing} of {total} images; --on-missing skip leaves them out")
    if total == 0:
        names = ", ".join(str(path) for path in request.questions)
        raise DataError(f"{names}: no questions{' that are balanced' if request.balanced_only else ''}")
    return min(total, request.limit or total)


def _packed(
    request: BuildRequest, grouping: Grouping, medium: Medium, staging: Path, engine: Engine
) -> Iterator[Packed | Unusable]:
    """Packed images in the order of their ids, up to the limit; skipped ones do not count."""
    tasks = (
        Task(
            ImageSource(group.sample_id, tuple(map(medium.origin, group.refs))),
            group.items,
            request.resize,
            request.format,
        )
        for group in grouping.groups()
    )
    results = engine.pack(tasks, staging)
    count = 0
    try:
        for result in results:
            yield result
            count += isinstance(result, Packed)
            if count == request.limit:
                return
    finally:
        results.close()


def _skip(unusable: Unusable, on_missing: str) -> SkippedImage:
    if on_missing == "fail":
        raise DataError(f"{unusable.message}; --on-missing skip leaves it out")
    refs = unusable.source.refs
    return SkippedImage(
        image_id=unusable.source.sample_id,
        image_ref=unusable.image_ref,
        num_questions=unusable.num_items,
        reason=unusable.reason,
        image_refs=UNSET if len(refs) == 1 else list(refs),
    )


def _index(request: BuildRequest, sources: list[Source], result: _Result, left_out: dict[str, int]) -> SplitIndex:
    summary = summarise(result.kinds)
    reasons = Counter(image.reason for image in result.skipped)
    return SplitIndex(
        reader=request.format,
        sources=sources,
        options=request.options(),
        counts={
            "images": sum(len(shard.image_ids) for shard in result.shards),
            "questions": summary.questions,
            "answered": summary.answered,
            "missing_images": reasons["missing"],
            "unreadable_images": reasons["unreadable"],
            "skipped_questions": sum(image.num_questions for image in result.skipped),
            **left_out,
        },
        answers=summary.answers,
        groups=summary.groups,
        types=summary.types,
        shards=result.shards,
        skipped=result.skipped,
        images_sha256=result.images_sha256,
        regions=result.regions or UNSET,
    )
