"""The composition root: names in a recipe become splits, tokenizers, a model and loaders, in this file alone."""

import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from model.build import BuiltModel, build_model
from model.config import ImageTokens, ModelConfig, uses_efficient_sam
from model.efficient_sam.segmenter import Segmenter
from model.efficient_sam.weights import EncoderAloneError, load_efficient_sam_encoder, load_segmenter
from model.fusion_objective import FusionObjective
from model.looking.second_stream import EfficientSamMaskStream, EfficientSamStream
from model.objective import Built
from model.pnp.captions import load_captioner
from model.pnp.fid import load_reader
from model.pnp.pipeline import PnpPipeline
from model.pnp.viewer import Viewer
from model.reader.build import BuiltReader, build_reader
from model.retrieval.build import BuiltRetrieval, build_retrieval
from model.source import efficient_sam_sizes
from model.towers.lxmert import RegionTower
from model.towers.tokenizer import build_tokenizer, count_words, load_tokenizer, tokenizer_of
from model.vlm.build import BuiltVlm, build_vlm
from shards.errors import ConfigError, DataError, UserError
from shards.format.index import SplitIndex
from shards.micro_batches import Ints
from shards.read.augment import changes
from shards.read.features import CachedSight
from shards.read.lengths import longest_questions
from shards.read.loader import Loader
from shards.read.micro_batches import EvaluationBatches, Split, Texts, TrainingBatches
from shards.read.retrieved import read_retrieved
from shards.tasks import TASKS
from shards.tasks.seam import Wanted
from trainer.config import RunConfig
from trainer.config.faults import without_words, wrong_medium, wrong_width
from trainer.config.schema import plan_order, share_of
from trainer.engine.distributed import World
from trainer.run_directory import RunDirectory, replace_directory

logger = logging.getLogger(__name__)

FUSION_FILE = "fusion_encoder.safetensors"

AnyBuilt = BuiltModel | BuiltVlm | BuiltRetrieval | BuiltReader


def open_split(config: RunConfig, name: str) -> Split:
    """A split of the recipe, opened.

    Raises:
        ConfigError: the recipe names no shards for it.
        DataError: there are no finished shards.
    """
    directory = getattr(config.data, name)
    if directory is None:
        raise ConfigError(f"data.{name}: is not set; name a directory of shards built with `duoflow shards build`")
    try:
        return Split(directory, plan_order(config), limit=config.data.limit, cache=config.data.cache)
    except DataError as error:
        raise DataError(f"data.{name}: {error}") from None


def assemble_model(
    config: RunConfig,
    *,
    scratch_tokenizer: Callable[[], PreTrainedTokenizerBase],
    classes: Sequence[str] = (),
    model: ModelConfig | None = None,
) -> AnyBuilt:
    """The model of a recipe, or `model` in its place, with untrained parts as the seed makes them.

    Args:
        classes: see `classes_of`.
    """
    limits = {
        "max_question_tokens": config.data.max_question_tokens,
        "max_answer_tokens": config.data.max_answer_tokens,
    }
    task, seed = TASKS[config.task], config.run.seed
    if config.model.retrieval is not None:
        wanted = {"task": task, "seed": seed, "max_question_tokens": config.data.max_question_tokens}
        return build_retrieval(model or config.model, config.retrieval, config.losses, **wanted)
    if config.model.vlm is not None:
        return build_vlm(model or config.model, config.vlm, config.losses, task=task, seed=seed, **limits)
    if config.model.reader is not None:
        return build_reader(model or config.model, config.reader, config.losses, task=task, seed=seed, **limits)
    return build_model(
        model or config.model,
        config.losses,
        task=task,
        answers=config.answers,
        classes=classes,
        seed=seed,
        scratch_tokenizer=scratch_tokenizer,
        **limits,
    )


def classes_of(config: RunConfig, train: SplitIndex) -> tuple[str, ...]:
    """What the class head of a run names and a ranking chooses from: those of its task, or answers of a list.

    Raises:
        ConfigError: the list cannot be read, or there is no answer in it.
    """
    data = TASKS[config.task]
    if data.classes is not None:
        return data.classes
    if config.losses.classify == 0 and config.answers.by != "rank":
        return ()
    if config.answers.list is not None:
        return _listed_answers(Path(config.answers.list).expanduser(), data.class_of)
    counts: Counter[str] = Counter()
    for answer, count in train.answers.items():
        counts[data.class_of(answer)] += count
    frequent = [answer for answer, count in counts.items() if count >= config.answers.min_count]
    if not frequent:
        raise ConfigError(
            f"answers.min_count: no answer of {config.data.train} is that of {config.answers.min_count} questions; "
            "lower it, or name a file in answers.list"
        )
    return tuple(sorted(frequent, key=lambda answer: (-counts[answer], answer)))


def _listed_answers(path: Path, class_of: Callable[[str], str]) -> tuple[str, ...]:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[str])
    except OSError as error:
        raise ConfigError(
            f"answers.list: {path}: cannot be read: {error.strerror}; name a JSON list of answers"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"answers.list: {path}: {error}; expected a JSON list of answers") from None
    answers = tuple(dict.fromkeys(map(class_of, found)))
    if not answers:
        raise ConfigError(f"answers.list: {path}: no answer in it; expected a JSON list of answers")
    return answers


def training_tokenizer(config: RunConfig, train: Split) -> PreTrainedTokenizerBase:
    """The tokenizer of `scratch` towers, from all questions and answers of the training split."""
    return build_tokenizer(_texts(train), vocab_size=config.model.scratch.vocab_size)


def shared_tokenizer(
    config: RunConfig, train: Split, directory: RunDirectory, world: World
) -> Callable[[], PreTrainedTokenizerBase]:
    """The tokenizer of `scratch` towers, built once by all ranks and kept in rank 0's run directory; collective.

    The other ranks get its files: they need not see that disk, nor wait until it shows them. Until there is a
    checkpoint it is built anew: the shards may have been.
    """
    path = directory.path / "tokenizer"

    def is_there() -> bool:
        return world.rank == 0 and path.is_dir() and directory.has_checkpoint

    def provide(words: Mapping[str, int] | None) -> str:
        if world.rank != 0:
            return ""
        aside = path.with_name(".tokenizer.partial")
        try:
            if words is not None:
                shutil.rmtree(aside, ignore_errors=True)
                tokenizer_of(words, vocab_size=config.model.scratch.vocab_size).save_pretrained(aside)
                replace_directory(aside, path)
            return json.dumps({file.name: file.read_text(encoding="utf-8") for file in sorted(path.iterdir())})
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error}); free some space on this disk") from error

    def tokenizer() -> PreTrainedTokenizerBase:
        words = None if world.any_rank(is_there()) else _counted_together(train, world)
        files = world.broadcast_text(world.agree_on(lambda: provide(words)))
        if world.rank == 0:
            return load_tokenizer(path)
        with tempfile.TemporaryDirectory(prefix="tokenizer.") as received:
            for name, text in json.loads(files).items():
                (Path(received) / name).write_text(text, encoding="utf-8")
            return load_tokenizer(Path(received))

    return tokenizer


def _counted_together(train: Split, world: World) -> Counter[str]:
    """The words of the split on rank 0, elsewhere none: each rank counts its part of the images; collective.

    One rank alone needs hours for half a billion questions, and the others would be gone after their time-out.
    """
    own = world.agree_on(lambda: count_words(_texts(train, world.rank, world.world_size)))
    parts = world.gather_text(json.dumps(own))
    return sum((Counter(json.loads(part)) for part in parts or ()), Counter())


def _texts(train: Split, part: int = 0, parts: int = 1) -> Iterator[str]:
    """Of one of so many contiguous parts of the images."""
    bounds = [number * train.index.num_images // parts for number in (part, part + 1)]
    for image in bounds[0] + np.flatnonzero(train.visits.num_questions[slice(*bounds)]):
        for item in train.reader.sample(int(image)).items:
            yield from item.texts


def make_texts(config: RunConfig, built: Built) -> Texts:
    """How the loader turns questions into tokens for this model."""
    data = config.data
    wanted = Wanted(
        blocks=built.blocks,
        negatives=tuple(config.losses.negatives),
        genome=config.losses.genome,
        classes={name: number for number, name in enumerate(built.classes)},
        pages=data.pages_per_visit,
        retrieved=None if data.retrieved is None else read_retrieved(data.retrieved, data.retrieved_pages),
    )
    return Texts(task=config.task, collation=built.collation, wanted=wanted)


def image_size(config: RunConfig, built: AnyBuilt) -> int | None:
    """Side in pixels of the images that the loader makes; None where it gives regions, images of their own size, or
    none.

    Raises:
        ConfigError: the recipe names one, and regions have none.
    """
    if not isinstance(built, BuiltModel):
        return None
    if built.image_size is None and config.data.image_size is not None:
        raise ConfigError(
            f"data.image_size: {config.data.image_size}, but {config.model.vision} reads regions; set it to null"
        )
    return config.data.image_size or built.image_size


def check_medium(config: RunConfig, built: AnyBuilt, split: Split) -> None:
    """Whether the first tower reads what the images of a split are packed as.

    Raises:
        ConfigError: it does not.
    """
    if isinstance(built, BuiltReader):
        if not split.index.has_words:
            raise ConfigError(without_words(split.directory))
        return
    if not isinstance(built, BuiltModel):
        if split.index.medium != "pixels":
            raise ConfigError(wrong_medium(built.reference, "pixels", split.directory, split.index.medium))
        return
    sight, index, reference = built.objective.sight, split.index, config.model.vision
    if sight.medium != index.medium:
        raise ConfigError(wrong_medium(reference, sight.medium, split.directory, index.medium))
    if isinstance(sight, RegionTower) and sight.region_width != index.regions.width:
        raise ConfigError(wrong_width(reference, sight.region_width, split.directory, index.regions))


def training_loader(
    config: RunConfig, split: Split, built: AnyBuilt, world: World, *, features: CachedSight | None = None
) -> tuple[TrainingBatches, Loader]:
    """The micro-batches of this rank, and the workers that prepare them.

    Args:
        features: cached tokens in the place of the images.
    """
    check_medium(config, built, split)
    share = share_of(config, world.rank, world.world_size)
    augment = None if config.data.augment is None else changes(config.data.augment, config.run.seed)
    batches = TrainingBatches(
        split,
        make_texts(config, built),
        image_size(config, built),
        share,
        augment=augment,
        features=features,
        longest=None if share.micro_tokens is None else _lengths(config, split, world),
    )
    return batches, _loader(config, batches, world.device)


def _lengths(config: RunConfig, split: Split, world: World) -> Ints:
    """The longest question of each image, for every rank; collective. Each of them reads a part of the samples."""
    place = {"rank": world.rank, "world_size": world.world_size}
    own = world.agree_on(lambda: longest_questions(split, most=config.data.max_question_tokens, **place))
    return world.max_across_ranks(torch.from_numpy(own)).numpy()


def evaluation_loader(
    config: RunConfig,
    split: Split,
    built: AnyBuilt,
    world: World,
    *,
    max_images: int | None = None,
    shuffle_images: bool = False,
    features: CachedSight | None = None,
) -> tuple[EvaluationBatches, Loader]:
    """The micro-batches of this rank's part of a split, in index order.

    Args:
        features: cached tokens in the place of the images.
    """
    check_medium(config, built, split)
    share = share_of(config, world.rank, world.world_size)
    batches = EvaluationBatches(
        split,
        make_texts(config, built),
        image_size(config, built),
        share,
        max_images=max_images,
        shuffle_images=shuffle_images,
        features=features,
    )
    return batches, _loader(config, batches, world.device)


def _loader(config: RunConfig, batches: TrainingBatches | EvaluationBatches, device: torch.device) -> Loader:
    return Loader(batches, workers=config.data.workers, pin_memory=device.type == "cuda")


def build_viewer(
    config: RunConfig,
    built: BuiltModel,
    device: torch.device,
    *,
    looks_with: ImageTokens = "fused",
    needs_masks: bool = True,
) -> Viewer:
    """What looks at images with a run's model; its masks come from the recipe's EfficientSAM weights.

    Args:
        looks_with: the image tokens behind the heatmap.
        needs_masks: refuse weights that masks cannot be made with; else one warning says so and there are no masks.

    Raises:
        ConfigError: the recipe has no matching tower, from which the heatmap is read, or none that reads these tokens.
        DataError: weights are damaged.
    """
    if "itm" not in built.objective.parts:
        raise ConfigError(
            "losses.itm: is 0 in this run, so it has no matching tower, from which the heatmap is read; train with a "
            "weight for it"
        )
    try:
        segmenter = _build_segmenter(config.model, built.objective)
    except UserError as error:
        if needs_masks:
            raise
        logger.warning("no masks: %s", error)
        segmenter = None
    if segmenter is not None:
        segmenter.to(device).eval().requires_grad_(False)
    return Viewer(built.objective, built.match_codec, segmenter, config.model.guidance, looks_with=looks_with)


def _build_segmenter(model: ModelConfig, objective: FusionObjective) -> Segmenter | None:
    """EfficientSAM with what makes masks, around the second stream's own encoder where that is the frozen original."""
    checkpoint, stream = model.efficient_sam.checkpoint, objective.tower("second_stream")
    if checkpoint is None or model.guidance.blend == 0:
        return None
    if not uses_efficient_sam(model) and not Path(checkpoint).expanduser().is_file():
        logger.info("no masks: model.efficient_sam.checkpoint: %s is not there, and nothing else needs it", checkpoint)
        return None
    if isinstance(stream, EfficientSamMaskStream):
        return stream.segmenter
    shared = isinstance(stream, EfficientSamStream) and "second_stream" in model.freeze
    try:
        if shared:
            return load_segmenter(checkpoint, image_encoder=stream.encoder)
        encoder = load_efficient_sam_encoder(checkpoint, efficient_sam_sizes(model.efficient_sam))
        return load_segmenter(checkpoint, image_encoder=encoder)
    except EncoderAloneError as alone:
        logger.info("no masks: %s", alone)
        return None


def build_pnp(config: RunConfig, built: BuiltModel, device: torch.device, dtype: torch.dtype) -> PnpPipeline:
    """PNP-VQA around a run's exported model.

    Raises:
        ConfigError: the recipe names no captioner or reader, or another kind of model.
        DataError: a checkpoint is missing or damaged.
    """
    pnp = config.pnp
    for key, example in (("captioner", "Salesforce/blip-image-captioning-base"), ("reader", "google/flan-t5-base")):
        if getattr(pnp, key) is None:
            raise ConfigError(f"pnp.{key}: is not set; name a checkpoint, such as pnp.{key}={example}")
    viewer = build_viewer(config, built, device, looks_with=pnp.looks_with)
    captioner, reader = load_captioner(pnp.captioner, pnp.captions), load_reader(pnp.reader)
    pipeline = PnpPipeline(viewer, captioner, reader, pnp)
    pipeline.place(device, dtype)
    return pipeline
