"""The order of an epoch as a pure function: which questions of which image, in which step, on which rank.

Terms. A *visit* is one image with at most K of its questions. An epoch gives every question exactly once. The V visits
of an epoch stand in one order; L *lanes* cut that order into L contiguous pieces, and a step of B visits takes v = B/L
positions of every lane. Ranks own whole lanes, so the set of visits of a step is the same for every world size that
divides L, and resuming is a seek.

Every random order is an argsort of a 64-bit hash of (seed, epoch, purpose, id), ties by id: it cannot change with the
version of a library's generator.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError, DataError
from shards.micro_batches import Ints, Lengths, micro_batches_needed, pack

Purpose = Literal[
    "question",
    "shard",
    "visit",
    "answer_negative",
    "question_negative",
    "subset",
    "exchange",
    "augment",
    "shift",
    "page",
    "page_negative",
    "answer",
]

PADDING = -1
"""Stands for a missing visit: weight 0, nothing is read."""
DEFAULT_MAX_LANES = 64
_BLOCKS_BESIDE = 16
"""Blocks kept beside one for each lane: lanes enter their next ones one after the other."""
_SHUFFLED_IMAGES = 128
_AT_ONCE = 1 << 20
"""Images whose visits are counted together: what is needed beside the result stays small."""


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijective scrambling of 64-bit integers (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=256)
def _key(seed: int, epoch: int, purpose: Purpose) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def hash64(seed: int, epoch: int, purpose: Purpose, ids: Ints) -> NDArray[np.uint64]:
    """A 64-bit hash of (seed, epoch, purpose, id) for each id."""
    return mix64(mix64(ids.astype(np.uint64)) ^ _key(seed, epoch, purpose))


def hash_order(seed: int, epoch: int, purpose: Purpose, ids: Ints) -> Ints:
    """Positions of `ids` in the order of their hashes, ties by id. `ids` ascend."""
    return np.argsort(hash64(seed, epoch, purpose, ids), kind="stable")


def default_lanes(visits_per_step: int) -> int:
    """The largest divisor of the global batch that is at most 64."""
    return max(lane for lane in range(1, min(visits_per_step, DEFAULT_MAX_LANES) + 1) if visits_per_step % lane == 0)


def in_first_order(values: Ints) -> Ints:
    """Each value once, in the order in which they first stand there."""
    _, first = np.unique(values, return_index=True)
    return values[np.sort(first)]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What determines the order of a run, apart from the data."""

    seed: int
    questions_per_visit: int
    """K"""
    visits_per_step: int
    """B"""
    lanes: int
    """L, a divisor of B."""
    shuffle_shards: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every step a rank computes: rank r of W, in micro-batches of m visits, or of so many tokens."""

    rank: int
    world_size: int
    micro_visits: int
    """m; with `micro_tokens` that of an evaluation, and in training the fewest that there can be."""
    micro_tokens: int | None = None
    """Padded tokens of the questions of a micro-batch at most; None cuts by visits."""

    @property
    def smallest(self) -> int:
        """Visits of the smallest micro-batch of a step that is full."""
        return self.micro_visits if self.micro_tokens is None else 1


def accumulation_steps(order: Order, share: Share) -> int:
    """Micro-batches that each rank computes for one step; by tokens, the most that it may be.

    Raises:
        ConfigError: the world size does not divide the lanes, or the micro-batch does not divide a rank's visits.
    """
    if order.lanes % share.world_size:
        fitting = [size for size in range(1, order.lanes + 1) if order.lanes % size == 0]
        visits, ranks = order.visits_per_step, share.world_size
        remedy = f"make batch.visits={visits} a multiple of {ranks}"
        if visits % ranks == 0:
            remedy = f"set batch.lanes to a multiple of {ranks} that divides batch.visits={visits}"
        raise ConfigError(
            f"batch.lanes: {order.lanes} lanes cannot be shared by {ranks} ranks; world sizes that fit: "
            f"{', '.join(map(str, fitting))} (or {remedy})"
        )
    per_rank = order.visits_per_step // share.world_size
    if per_rank % share.smallest:
        fitting = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
        raise ConfigError(
            f"batch.micro_visits: {share.micro_visits} does not divide the {per_rank} visits of a rank (batch.visits="
            f"{order.visits_per_step} over {share.world_size} ranks); sizes that fit: {', '.join(map(str, fitting))}"
        )
    return per_rank // share.smallest


class Visits:
    """The visits of a split: image i with n > 0 questions gives ceil(n/K) of them, numbered in index order.

    Kept are 4 bytes an image, and nothing for a visit: `image`, `parts` and `sizes` are made whole when they are asked
    for, 8 bytes an entry; what runs in every step asks for few at a time.

    Args:
        num_questions: questions of each image, in index order: (images,). An image with 0 is never visited.
        questions_per_visit: K.
        first_question: number over the split of the first question of each image, where that is known already.
    """

    def __init__(self, num_questions: Ints, questions_per_visit: int, first_question: Ints | None = None) -> None:
        self.num_questions, self.questions_per_visit = num_questions, questions_per_visit
        self._known_first_question = first_question
        self.first_visit = _first_visits(num_questions, questions_per_visit)  # (images + 1,)

    def __len__(self) -> int:
        return int(self.first_visit[-1])

    @cached_property
    def first_question(self) -> Ints:
        """Number over the split of the first question of each image: (images,)."""
        if self._known_first_question is not None:
            return self._known_first_question
        return np.cumsum(self.num_questions, dtype=np.int64) - self.num_questions

    @cached_property
    def parts(self) -> Ints:
        """Visits of each image: (images,)."""
        return np.diff(self.first_visit).astype(np.int64)

    @cached_property
    def image(self) -> Ints:
        """The image of each visit: (visits,)."""
        return np.repeat(np.arange(len(self.num_questions)), self.parts)

    @cached_property
    def sizes(self) -> Ints:
        """Questions of each visit: (visits,). Visits of one image differ by at most 1."""
        return self.sizes_of(np.arange(len(self)))

    def images_of(self, visits: Ints) -> Ints:
        """The images of some visits."""
        # As the kind that is searched: numpy would bring millions of first visits to that of a few numbers.
        sought = np.asarray(visits, dtype=self.first_visit.dtype)
        return np.searchsorted(self.first_visit, sought, side="right") - 1

    def image_of(self, visit: int) -> int:
        """The image of a visit."""
        return int(self.images_of(np.asarray([visit]))[0])

    def sizes_of(self, visits: Ints) -> Ints:
        """Questions of some visits."""
        images = self.images_of(visits)
        questions, first = self.num_questions[images].astype(np.int64), self.first_visit[images].astype(np.int64)
        parts = self.first_visit[images + 1] - first
        return questions // parts + (visits - first < questions % parts)

    def span(self, visit: int) -> slice:
        """Where the questions of a visit lie in its image's order of questions."""
        image = self.image_of(visit)
        first, end = int(self.first_visit[image]), int(self.first_visit[image + 1])
        base, longer = divmod(int(self.num_questions[image]), end - first)
        part = visit - first
        start = part * base + min(part, longer)
        return slice(start, start + base + (part < longer))


def _first_visits(num_questions: Ints, questions_per_visit: int) -> Ints:
    """Number of the first visit of each image, and one past the last: (images + 1,), of 4 bytes where these do."""

    def parts() -> Iterator[tuple[int, Ints]]:
        for start in range(0, len(num_questions), _AT_ONCE):
            yield start, -(-num_questions[start : start + _AT_ONCE].astype(np.int64) // questions_per_visit)

    total = sum(int(some.sum()) for _, some in parts())
    first = np.zeros(len(num_questions) + 1, np.int32 if total <= np.iinfo(np.int32).max else np.int64)
    for start, some in parts():
        first[start + 1 : start + 1 + len(some)] = first[start] + np.cumsum(some)
    return first


def steps_per_epoch(num_visits: int, order: Order) -> int:
    """S = ceil(ceil(V/L) / v)."""
    longest_lane = -(-num_visits // order.lanes)
    return -(-longest_lane // (order.visits_per_step // order.lanes))


class EpochOrder:
    """The order of one epoch of one split: made block by block, when a step comes to it.

    What is kept are the blocks that the lanes are in, 4 bytes a visit: a step costs what it touches, wherever it is.
    """

    def __init__(self, visits: Visits, first_image: Ints, order: Order, epoch: int) -> None:
        self.visits, self.order, self.epoch = visits, order, epoch
        self._first_image = first_image
        num_shards, size = len(first_image) - 1, order.shuffle_shards
        shards = hash_order(order.seed, epoch, "shard", np.arange(num_shards))
        self._shards_of_block = [np.sort(shards[start : start + size]) for start in range(0, num_shards, size)]
        self._block_of_shard = np.empty(num_shards, np.int64)
        self._block_of_shard[shards] = np.arange(num_shards) // size
        self._shard_bounds = visits.first_visit[first_image].astype(np.int64)  # (shards + 1,) visit numbers
        in_block = [np.diff(self._shard_bounds)[block].sum() for block in self._shards_of_block]
        self._block_bounds = np.concatenate([[0], np.cumsum(in_block, dtype=np.int64)]).astype(np.int64)
        self._in_order = lru_cache(maxsize=order.lanes + _BLOCKS_BESIDE)(self._order_block)
        self._shuffled = lru_cache(maxsize=_SHUFFLED_IMAGES)(self._shuffle)
        self.step = lru_cache(maxsize=2)(self._step)

    @property
    def num_steps(self) -> int:
        """S, of `steps_per_epoch`."""
        return steps_per_epoch(len(self.visits), self.order)

    @property
    def sequence(self) -> Ints:
        """Visit numbers in the order of the epoch: (V,), all of them."""
        return self._at(np.arange(len(self.visits)))

    def _step(self, step: int) -> Ints:
        """The visits of a step, one row per lane: (L, B/L), PADDING where a lane has ended."""
        lanes = np.arange(self.order.lanes + 1)
        bounds = lanes * len(self.visits) // self.order.lanes
        per_lane = self.order.visits_per_step // self.order.lanes
        positions = bounds[:-1, None] + step * per_lane + np.arange(per_lane)
        inside = positions < bounds[1:, None]
        visits = np.full(positions.shape, PADDING, np.int64)
        visits[inside] = self._at(positions[inside])
        visits.flags.writeable = False
        return visits

    def _at(self, positions: Ints) -> Ints:
        """The visits at positions of the epoch."""
        blocks = np.searchsorted(self._block_bounds, positions, side="right") - 1
        found = np.empty(len(positions), np.int64)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            found[here] = self._in_order(block)[positions[here] - self._block_bounds[block]]
        return found

    def _order_block(self, block: int) -> Ints:
        """The visits of a block in their order."""
        bounds = self._shard_bounds
        parts = [np.arange(bounds[shard], bounds[shard + 1]) for shard in self._shards_of_block[block].tolist()]
        numbers = np.concatenate(parts)  # ascending, as ties are decided
        ordered = numbers[hash_order(self.order.seed, self.epoch, "visit", numbers)]
        return ordered.astype(self.visits.first_visit.dtype)

    def questions_in_step(self, step: int) -> int:
        """Questions of the whole step, over all ranks: the denominator of its losses."""
        visits = self.step(step)
        return int(self.visits.sizes_of(visits[visits != PADDING]).sum())

    def micro_batch(self, step: int, micro_step: int, share: Share) -> Ints:
        """The visits that a rank computes in one micro-step: (m,)."""
        own = self._of_rank(step, share.rank, share.world_size)
        return own[micro_step * share.micro_visits : (micro_step + 1) * share.micro_visits]

    def packed_micro_batches(self, step: int, share: Share, longest: Ints) -> list[Ints]:
        """The visits of each micro-batch of a rank for a step, packed by tokens: as many for every rank.

        The number is that of the rank that needs most; the others spread theirs over as many.

        Args:
            longest: (images,) tokens of the longest question of each image.
        """
        assert share.micro_tokens is not None, "cut by visits"
        ranks = [self._real_visits(step, rank, share.world_size) for rank in range(share.world_size)]
        lengths = [Lengths(self.visits.sizes_of(own), longest[self.visits.images_of(own)]) for own in ranks]
        count = max(micro_batches_needed(found, share.micro_tokens) for found in lengths)
        own = ranks[share.rank]
        return [own[places] for places in pack(lengths[share.rank], count)]

    def _of_rank(self, step: int, rank: int, world_size: int) -> Ints:
        lanes = self.order.lanes // world_size
        return self.step(step)[rank * lanes : (rank + 1) * lanes].ravel()

    def _real_visits(self, step: int, rank: int, world_size: int) -> Ints:
        own = self._of_rank(step, rank, world_size)
        return own[own != PADDING]

    def shards_in_step(self, step: int, share: Share) -> Ints:
        """The shards that a rank may read in a step: those of its visits, in their order, then those around them."""
        return self.shards_around(self.visits.images_of(self._real_visits(step, share.rank, share.world_size)))

    def shards_of(self, images: Ints) -> Ints:
        """The shards of images, in their order."""
        return in_first_order(np.searchsorted(self._first_image, images, side="right") - 1)

    def shards_around(self, images: Ints) -> Ints:
        """The shards of images, in their order, then the others of their blocks, which negatives come from."""
        own = self.shards_of(images)
        near = np.flatnonzero(np.isin(self._block_of_shard, self._block_of_shard[own]))
        return in_first_order(np.concatenate([own, near]))

    def questions(self, visit: int) -> Ints:
        """The questions of a visit as positions in their image's list: (size,)."""
        return self._shuffled(self.visits.image_of(visit))[self.visits.span(visit)]

    def _shuffle(self, image: int) -> Ints:
        first, count = int(self.visits.first_question[image]), int(self.visits.num_questions[image])
        return hash_order(self.order.seed, self.epoch, "question", np.arange(first, first + count))

    def block(self, image: int) -> Ints:
        """The visits among which an image's question negatives are chosen: those of its block of shards."""
        shard = int(np.searchsorted(self._first_image, image, side="right")) - 1
        return self._in_order(int(self._block_of_shard[shard]))


class EvaluationOrder:
    """Index order, cut into contiguous parts for any world size; every rank has as many micro-batches."""

    def __init__(self, visits: Visits, share: Share) -> None:
        self.visits, self.share = visits, share

    @property
    def num_micro_batches(self) -> int:
        longest = -(-len(self.visits) // self.share.world_size)
        return -(-longest // self.share.micro_visits)

    def micro_batch(self, number: int) -> Ints:
        """The visits of this rank's micro-batch: (m,), PADDING behind the end."""
        rank, world_size, micro = self.share.rank, self.share.world_size, self.share.micro_visits
        start, stop = rank * len(self.visits) // world_size, (rank + 1) * len(self.visits) // world_size
        positions = start + number * micro + np.arange(micro)
        return np.where(positions < stop, positions, PADDING)

    def questions(self, visit: int) -> Ints:
        """The questions of a visit as positions in their image's list, in index order: (size,)."""
        span = self.visits.span(visit)
        return np.arange(span.start, span.stop)


def limit_images(num_questions: Ints, limit: int | None) -> Ints:
    """`num_questions` with only the first `limit` images that have questions left in use."""
    if limit is None:
        return num_questions
    used = np.cumsum(num_questions > 0) <= limit
    return np.where(used, num_questions, 0)


def sample_images(num_questions: Ints, max_images: int | None, seed: int) -> Ints:
    """`num_questions` with only `max_images` hash-chosen images left in use: always the same ones for a seed."""
    asked = np.flatnonzero(num_questions > 0)
    if max_images is None or len(asked) <= max_images:
        return num_questions
    chosen = asked[hash_order(seed, 0, "subset", asked)[:max_images]]
    limited = np.zeros_like(num_questions)
    limited[chosen] = num_questions[chosen]
    return limited


def exchanged_images(num_questions: Ints, seed: int) -> Ints:
    """For each image in use the number of another one, each of them once: a single cycle in hash order.

    Raises:
        DataError: only one image is in use.
    """
    used = np.flatnonzero(num_questions > 0)
    if len(used) == 1:
        raise DataError(
            "--images shuffled: only one image of this split is asked about; expected at least two: take a larger "
            "split or data.limit, or --images own"
        )
    cycle = used[hash_order(seed, 0, "exchange", used)]
    other = np.arange(len(num_questions))
    other[cycle] = np.roll(cycle, 1)
    return other
