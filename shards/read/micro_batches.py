"""Micro-batches of a split by their keys: which visits they hold, and how those are read, decoded and tokenised."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import TypeVar

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from shards.annotations import reader_of
from shards.config import CacheConfig
from shards.errors import DataError, UserError
from shards.format.images import UnreadableImage
from shards.format.index import SplitIndex, open_index
from shards.format.tar_reader import ShardReader
from shards.plan import (
    PADDING,
    EpochOrder,
    EvaluationOrder,
    Ints,
    Order,
    Share,
    Visits,
    accumulation_steps,
    exchanged_images,
    limit_images,
    sample_images,
)
from shards.read.augment import Changes
from shards.read.collate import Shown
from shards.read.collation import Collation, SeenVisit, first_images
from shards.read.eyes import Augment
from shards.read.features import CachedSight, DamagedFeaturesError
from shards.read.fetcher import Errand, Fetcher
from shards.read.micro_batch import Fault, MicroBatch
from shards.read.packed import PackedSteps
from shards.read.parcel import Parcel
from shards.read.windows import by_window, only_named
from shards.remote.files import CachedFiles, open_files
from shards.tasks import TASKS
from shards.tasks.seam import Draw, Rows, Visit, Wanted

_Image = TypeVar("_Image")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Which rows of text are made of a visit, and how they become tensors."""

    task: str
    collation: Collation
    wanted: Wanted


class Split:
    """A split of shards, opened: its index, its reader and the visits that a run makes of it.

    Args:
        directory: of shards, or their URL.
        cache: where copies of the shards of a URL are kept; None is where a recipe that says nothing keeps them.

    Raises:
        ConfigError: the cache cannot be used.
        DataError: there are no finished shards there, or none of their images has a question.
    """

    def __init__(
        self, directory: str, order: Order, *, limit: int | None = None, cache: CacheConfig | None = None
    ) -> None:
        self.directory, self.order, self.cache = directory, order, cache or CacheConfig()
        self.index: SplitIndex = open_index(directory)
        kind = reader_of(self.index, directory).sample
        files = open_files(directory, self.index.shards, self.cache)
        self.reader = ShardReader(directory, self.index, kind, files)
        self._limit = limit
        self.visits = self._visits()
        if not len(self.visits):
            raise DataError(f"{directory}: no questions in these shards; expected at least one")
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def __getstate__(self) -> dict:
        """Without what is counted faster than it is sent."""
        return {key: value for key, value in self.__dict__.items() if key not in ("epoch", "visits")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.visits = self._visits()
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _visits(self) -> Visits:
        # An image that is left out is none of those that are asked about, so that numbers of questions stay.
        counts = limit_images(self.index.num_questions, self._limit)
        return Visits(counts, self.order.questions_per_visit, self.index.columns.first_item[:-1])

    def _epoch(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.visits, self.index.first_image, self.order, epoch)

    @property
    def steps_per_epoch(self) -> int:
        return self.epoch(0).num_steps

    def evaluation(self, share: Share, max_images: int | None = None) -> EvaluationOrder:
        """The order of an evaluation over this rank's share, of all images or of `max_images` hash-chosen ones."""
        counts = sample_images(self.visits.num_questions, max_images, self.order.seed)
        return EvaluationOrder(Visits(counts, self.order.questions_per_visit), share)


class MicroBatches(Dataset):
    """What training and evaluation share: visits to tensors."""

    def __init__(self, split: Split, texts: Texts, image_size: int | None, features: CachedSight | None = None) -> None:
        self.split, self.texts, self.eyes = split, texts, texts.collation.eyes(split.index, image_size)
        self.features = features

    @property
    def modules(self) -> set[str]:
        """What a process that prepares these micro-batches imports."""
        return {__name__, *self.texts.collation.modules}

    def __getitem__(self, key: tuple) -> MicroBatch | Parcel | Fault:
        try:
            made = self.prepare(*key)
        except UserError as error:
            return Fault(str(error))
        return made if get_worker_info() is None else Parcel(made)

    def prepare(self, *key: int) -> MicroBatch:
        raise NotImplementedError

    def position(self, *key: int) -> int:
        """Where a key lies on the way through the split: a data set is a `Route`."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        """See `shards.read.ahead.Route`."""
        raise NotImplementedError

    def shards_at(self, position: int) -> Ints:
        """See `shards.read.ahead.Route`."""
        raise NotImplementedError

    def fetcher(self) -> Fetcher | None:
        """A new process that fetches these shards ahead of need; None where they are at hand."""
        files = self.split.reader.files
        if not isinstance(files, CachedFiles):
            return None
        return Fetcher(Errand(files, self.split.index.shards, self, self.split.cache.ahead), self.modules)

    def _expect(self, *key: int) -> None:
        """Let go of shards that a key is beyond."""
        if isinstance(self.split.reader.files, CachedFiles):
            self.split.reader.expect(self.shards_at(self.position(*key)))

    def _assemble(
        self,
        visits: Ints,
        positions_of: Callable[[int], Ints],
        image_of: Callable[[int], int],
        draws_from: EpochOrder,
        *,
        loss_scale: float,
        keep_items: bool,
        augment: Callable[[Visit], Augment | None] | None = None,
    ) -> MicroBatch:
        numbers = [int(visit) for visit in visits if visit != PADDING]
        if keep_items:
            joined = groupby(numbers, key=image_of)
            parts = [(image, list(group)) for image, group in joined]
        else:
            parts = [(image_of(number), [number]) for number in numbers]
        task = TASKS[self.texts.task]
        read = [
            self._visit(image, np.concatenate([positions_of(number) for number in group])) for image, group in parts
        ]
        draw = Draw(draws_from, self.split.index, self.split.reader, is_training=not keep_items)
        made = [task.rows(visit, draw, self.texts.wanted) for visit in read]
        if task.images is None and task.by_window:
            windows = [window for visit, rows in zip(read, made, strict=True) for window in by_window(visit, rows)]
            read, made = [visit for visit, _ in windows], [rows for _, rows in windows]

        changed = [None if augment is None else augment(visit) for visit in read]
        features, notes = self.features, ()
        try:
            seen = [self._see(*visit, features) for visit in zip(read, made, changed, strict=True)]
        except DamagedFeaturesError as error:
            features, notes = None, (f"{error}; its batch is made from the images",)
            seen = [self._see(*visit, None) for visit in zip(read, made, changed, strict=True)]
        eyes = self.eyes if features is None else features.beside(self.eyes)
        batch, cut = self.texts.collation.collate(
            seen, loss_scale=loss_scale, eyes=eyes, blanks=task.images or 1, answering=keep_items
        )
        items = tuple(item for visit in read for item in visit.items)
        firsts = zip(first_images(seen), read, strict=True)
        return MicroBatch(
            batch,
            num_items=len(items),
            items_cut=cut,
            rows_missing=sum(rows.missing for rows in made),
            items=items if keep_items else (),
            item_images=tuple(first for first, visit in firsts for _ in visit.items) if keep_items else (),
            samples=tuple(visit.sample for visit in read),
            num_visits=len(numbers),
            notes=notes,
        )

    def _see(self, visit: Visit, rows: Rows, augment: Augment | None, features: CachedSight | None) -> SeenVisit:
        """The images of a visit: all of its sample, or of a task without a fixed number those that its rows name,
        which by window are the same ones for all of them."""
        shown = self._shown_image(visit.sample)
        blocks, places, pictures = rows.blocks, None, ()
        if TASKS[self.texts.task].images is None:
            blocks, places = only_named(rows.blocks)
            pictures = _at(places, self.split.reader.sample(shown).pictures)
        images = self._images(shown, augment, places) if features is None else self._cached(shown, places, features)
        return SeenVisit(images, blocks, len(visit.items), self.split.reader.describe(visit.sample), pictures)

    def _visit(self, sample: int, positions: Ints) -> Visit:
        first = int(self.split.visits.first_question[sample])
        return Visit(sample, self.split.reader.items(sample, positions.tolist()), (first + positions).tolist())

    def _shown_image(self, image: int) -> int:
        return image

    def _cached(self, sample: int, places: Sequence[int] | None, features: CachedSight) -> list[Shown]:
        """What is cached of these images; they are read themselves only where an encoder still looks at them."""
        shard, _ = self.split.index.locate(sample)
        images = _at(places, self.split.index.images_of(sample))
        shown = [None] * len(images) if features.is_whole else self._images(sample, None, places)
        return features.see(shard, images, shown)

    def _images(self, sample: int, augment: Augment | None, places: Sequence[int] | None) -> list[Shown]:
        """Those of a sample at these places, or all of them; none where nobody looks at them."""
        if self.eyes is None:
            return []
        reader = self.split.reader
        try:
            where, packed = reader.describe(sample), _at(places, reader.images(sample))
            return [self.eyes.see(data, where, augment) for data in packed]
        except UnreadableImage as error:
            raise DataError(
                f"{error}; list every fault with `duoflow shards verify {self.split.directory}` and build the shards "
                "again"
            ) from None


class TrainingBatches(MicroBatches):
    """Micro-batches by (epoch, step, micro-step), for one rank.

    Args:
        augment: changes the pictures of visits that it does not spare; for tasks that it may, and for pixels.
        features: cached tokens in the place of the images, where none is changed.
        longest: (images,) tokens of the longest question of each image, where micro-batches are packed by tokens.
    """

    def __init__(
        self,
        split: Split,
        texts: Texts,
        image_size: int | None,
        share: Share,
        *,
        augment: Changes | None = None,
        features: CachedSight | None = None,
        longest: Ints | None = None,
    ) -> None:
        super().__init__(split, texts, image_size, features)
        assert augment is None or features is None, "what is cached was seen unchanged"
        assert augment is None or TASKS[texts.task].augments, f"{texts.task}: checked with the recipe"
        self.share, self._augment = share, augment
        self.packed = None if share.micro_tokens is None else PackedSteps(split, share, longest)
        self.accumulation = accumulation_steps(split.order, share)

    def micro_batches_in(self, epoch: int, step: int) -> int:
        """Micro-batches of a step: as many on every rank."""
        return self.accumulation if self.packed is None else len(self.packed.micro_batches(epoch, step))

    def position(self, epoch: int, step: int, _: int) -> int:
        return epoch * self.length + step

    @property
    def length(self) -> int:
        return self.split.steps_per_epoch

    def shards_at(self, position: int) -> Ints:
        epoch, step = divmod(position, self.length)
        return self.split.epoch(epoch).shards_in_step(step, self.share)

    def prepare(self, epoch: int, step: int, micro_step: int) -> MicroBatch:
        order = self.split.epoch(epoch)
        self._expect(epoch, step, micro_step)
        # DeepSpeed averages over ranks and accumulation steps; the loss is a sum over the whole step divided by N.
        # Packed, a step may have fewer micro-batches than DeepSpeed divides by.
        scale = self.share.world_size * self.accumulation / order.questions_in_step(step)
        if self.packed is None:
            visits = order.micro_batch(step, micro_step, self.share)
        else:
            visits = self.packed.micro_batches(epoch, step)[micro_step]
        return self._assemble(
            visits,
            order.questions,
            order.visits.image_of,
            order,
            loss_scale=scale,
            keep_items=False,
            augment=partial(self._change_of, epoch),
        )

    def _change_of(self, epoch: int, visit: Visit) -> Augment | None:
        """What changes the pictures of a visit."""
        if self._augment is None or self._augment.spares(visit.items):
            return None
        return partial(self._augment, epoch=epoch, sample=visit.sample)


class EvaluationBatches(MicroBatches):
    """Micro-batches by number, for one rank; negatives are those of epoch 0, so that ITM accuracies compare.

    Args:
        max_images: evaluate so many hash-chosen images; None is all.
        shuffle_images: show every question the image of another sample, which tells what a model owes to its eyes.
        features: cached tokens in the place of the images.

    Raises:
        DataError: images are to be shuffled, and there is only one.
    """

    def __init__(
        self,
        split: Split,
        texts: Texts,
        image_size: int | None,
        share: Share,
        *,
        max_images: int | None = None,
        shuffle_images: bool = False,
        features: CachedSight | None = None,
    ) -> None:
        super().__init__(split, texts, image_size, features)
        self.order = split.evaluation(share, max_images)
        self._shown = exchanged_images(self.order.visits.num_questions, split.order.seed) if shuffle_images else None

    def all_keys(self) -> list[tuple[int]]:
        """The keys of all micro-batches of this rank; every rank has as many."""
        return [(number,) for number in range(self.order.num_micro_batches)]

    def _shown_image(self, image: int) -> int:
        return image if self._shown is None else int(self._shown[image])

    def position(self, number: int) -> int:
        return number

    @property
    def length(self) -> int:
        return self.order.num_micro_batches

    def shards_at(self, position: int) -> Ints:
        visits = self.order.micro_batch(position % self.length)
        images = self.order.visits.images_of(visits[visits != PADDING])
        shown = images if self._shown is None else self._shown[images]
        epoch = self.split.epoch(0)
        if "match" in self.texts.wanted.blocks and "question" in self.texts.wanted.negatives:
            return epoch.shards_around(np.concatenate([images, shown]))
        return epoch.shards_of(np.concatenate([images, shown]))

    def prepare(self, number: int) -> MicroBatch:
        self._expect(number)
        visits, order = self.order.micro_batch(number), self.order
        return self._assemble(
            visits, order.questions, order.visits.image_of, self.split.epoch(0), loss_scale=1.0, keep_items=True
        )


def _at(places: Sequence[int] | None, images: Sequence[_Image]) -> Sequence[_Image]:
    """The images of a sample at these places, or all of them; another one that is shown instead may have fewer."""
    return images if places is None else [images[place % len(images)] for place in places]


def training_keys(
    epoch: int, first_step: int, last_step: int, accumulation: int | Callable[[int, int], int]
) -> list[tuple[int, int, int]]:
    """Keys of the micro-batches of steps first_step .. last_step - 1 of an epoch, so many of each (epoch, step)."""
    counts = accumulation if callable(accumulation) else lambda _epoch, _step: accumulation
    return [(epoch, step, micro) for step in range(first_step, last_step) for micro in range(counts(epoch, step))]


def alone(micro_visits: int) -> Share:
    """The share of a process that works alone."""
    return Share(rank=0, world_size=1, micro_visits=micro_visits)
