"""Digests of what a trainer reads: shards of every kind of build, and the micro-batches made of them, bit by bit."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.build.writer import build_shards
from shards.plan import Order, Share
from shards.read.collate import Batch, Layout, PairCodec, TextCodec
from shards.read.collation import BlockCollation
from shards.read.loader import Loader
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import EvaluationBatches, Split, Texts, TrainingBatches, training_keys
from shards.scenes.command import write_scenes
from shards.tasks import TASKS
from shards.tasks.seam import Wanted
from tests.corpora import SMALL_SHARD, Corpus, write_corpus

Line = tuple[str, str]
"""The name of a value, and the value as text."""
Field = tuple[str, Tensor | int | None]
"""A name that stays, and what a batch has for it; None where there is no such thing."""
Codecs = dict[str, tuple[TextCodec | None, PairCodec | None]]
"""(answer codec, match codec) by a name for both."""

ABSENT = "absent"
SCENES = 30
SHARDS = Path("shards")
WORLD_SIZES = (1, 2, 4)
MICRO_VISITS = (1, 2)
EPOCHS = 2
IMAGE_SIZE = 32
ORDER = Order(seed=5, questions_per_visit=3, visits_per_step=8, lanes=4, shuffle_shards=2)


def batch_digest_fields(batch: Batch) -> list[Field]:
    """Everything in a batch under names of its own. A block that is not made is absent, whatever stands for it."""
    fields: list[Field] = [("pixels", batch.shown), ("scale", batch.loss_scale)]
    if "ask" not in batch.blocks:
        fields.append(("ask", None))
    else:
        ask = batch.blocks["ask"]
        fields += [
            ("ask.ids", ask.ids),
            ("ask.mask", ask.mask),
            ("ask.image", ask.image),
            ("ask.target_ids", ask.targets.ids),
            ("ask.target_labels", ask.targets.labels),
            ("ask.weight", ask.targets.weight),
            ("ask.most_per_image", ask.rows_per_image),
            ("ask.num_tokens", ask.tokens),
        ]
    if "match" not in batch.blocks:
        fields.append(("match", None))
    else:
        match = batch.blocks["match"]
        fields += [
            ("match.ids", match.ids),
            ("match.mask", match.mask),
            ("match.image", match.image),
            ("match.item", match.item),
            ("match.labels", match.labels),
            ("match.weight", match.weight),
            ("match.most_per_image", match.rows_per_image),
            ("match.most_per_item", match.rows_per_item),
            ("match.num_tokens", match.tokens),
        ]
    return fields


def host_digest_fields(item: MicroBatch) -> dict[str, Any]:
    """What is known of a micro-batch on the host, under names of its own."""
    return {
        "num_questions": item.num_items,
        "questions_cut": item.items_cut,
        "negatives_missing": item.rows_missing,
        "questions": [(asked.question_id, asked.question, asked.answer) for asked in item.items],
        "question_images": item.item_images,
        "images": item.samples,
        "num_visits": item.num_visits,
    }


def texts_of(answer_codec: TextCodec | None, match_codec: PairCodec | None, negatives: tuple[str, ...]) -> Texts:
    """GQA's blocks for the towers that there are."""
    blocks = TASKS["gqa"].blocks
    codecs = {"ask": answer_codec, "match": match_codec}
    layouts = {
        name: Layout(block=blocks[name], codec=codec, targets=name == "ask")
        for name, codec in codecs.items()
        if codec is not None
    }
    wanted = Wanted(blocks=frozenset(layouts), negatives=negatives)
    return Texts(task="gqa", collation=BlockCollation(layouts), wanted=wanted)


def shard_lines() -> Iterator[Line]:
    """Build shards in every way below the working directory, which `stream_lines` reads; digests of all of them."""
    train = write_corpus(Path("train"), num_images=24, seed=0)
    val = write_corpus(Path("val"), num_images=9, seed=1)
    rows = write_rows(write_corpus(Path("table"), num_images=10, seed=2, formats=("png",)))
    graphs = {"scene_graphs": train.scene_graphs}
    yield from _build("train", _gqa(train) | graphs)
    yield from _build("val", _gqa(val) | {"scene_graphs": val.scene_graphs})
    yield from _build("without_graphs", _gqa(train))
    yield from _build("balanced_only", _gqa(train) | graphs | {"balanced_only": True})
    yield from _build("resized", _gqa(train) | graphs | {"resize": 24})
    yield from _build("limited", _gqa(train) | graphs | {"limit": 7, "shard_bytes": 1 << 20})
    (train.images / "1001.png").unlink()
    yield from _build("missing_image", _gqa(train) | graphs | {"on_missing": "skip"})
    for format, file in rows.items():
        request = {"format": format, "questions": [file], "images": Path("table") / "images"}
        yield from _build(format, request)
        yield from _build(f"{format}_lowercase", request | {"lowercase_answers": True})
    scenes = Path("scenes")
    write_scenes(scenes, num_images=SCENES, seed=3)
    yield "scenes.images", files_digest(sorted((scenes / "images").iterdir()))
    yield "scenes.annotations", files_digest(sorted(scenes.glob("*.json")))
    request = {"format": "gqa", "questions": sorted(scenes.glob("*_balanced_questions.json"))}
    yield from _build("scenes", request | {"images": scenes / "images", "lowercase_answers": True})


def write_rows(corpus: Corpus) -> dict[str, Path]:
    """The questions of a corpus as JSON lines and CSV: some without an answer, others with capitals and wide gaps."""
    rows = []
    for number, record in enumerate(json.loads(corpus.questions.read_text()).values()):
        answer = None if number % 5 == 4 else record["answer"]
        if answer is not None and number % 3 == 0:
            answer = f" {answer.title()}  One"
        rows.append({"image": f"{record['imageId']}.png", "question": record["question"], "answer": answer})
    files = {format: corpus.directory / f"rows.{format}" for format in ("jsonl", "csv")}
    files["jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with files["csv"].open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return files


def stream_lines(codecs: Codecs) -> Iterator[Line]:
    """Digests of the micro-batches of two epochs and of evaluations, in order, over all ranks."""
    both = ("answer", "question")
    train, val, table = (Split(str(SHARDS / name), ORDER) for name in ("train", "val", "jsonl"))
    for name, (answer_codec, match_codec) in codecs.items():
        texts = texts_of(answer_codec, match_codec, both)
        for world_size in WORLD_SIZES:
            for micro_visits in MICRO_VISITS:
                label = f"{name}.world{world_size}.micro{micro_visits}"
                shares = [
                    Share(rank=rank, world_size=world_size, micro_visits=micro_visits) for rank in range(world_size)
                ]
                yield f"train_batches.{label}", stream_digest(_training(train, texts, shares))
                yield f"eval_batches.{label}", stream_digest(_evaluation(val, texts, shares))
        alone = [Share(rank=0, world_size=1, micro_visits=4)]
        yield f"eval_batches.{name}.shuffled", stream_digest(_evaluation(val, texts, alone, shuffle_images=True))
        yield f"eval_batches.{name}.five_images", stream_digest(_evaluation(val, texts, alone, max_images=5))
        yield f"train_batches.{name}.unanswered", stream_digest(_training(table, texts, alone))
        yield f"eval_batches.{name}.unanswered", stream_digest(_evaluation(table, texts, alone))
        for kind in both if match_codec is not None else ():
            texts = texts_of(answer_codec, match_codec, (kind,))
            yield f"train_batches.{name}.negatives_{kind}", stream_digest(_training(train, texts, alone))


def stream_digest(items: Iterable[MicroBatch]) -> str:
    """Of all micro-batches in their order; a block that is not there is the word `absent`."""
    everything = hashlib.sha256()
    for item in items:
        everything.update(tensors_digest(batch_digest_fields(item.batch)).encode())
        everything.update(text_digest(json.dumps(host_digest_fields(item))).encode())
    return everything.hexdigest()


def tensors_digest(fields: Iterable[Field]) -> str:
    """Of names, types, shapes and bytes."""
    everything = hashlib.sha256()
    for name, value in fields:
        if isinstance(value, Tensor):
            everything.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            # As bytes first: numpy has no bfloat16.
            everything.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            everything.update(f"{name} {ABSENT if value is None else int(value)}\n".encode())
    return everything.hexdigest()


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """Of names and contents."""
    everything = hashlib.sha256()
    for file in files:
        everything.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return everything.hexdigest()


def _gqa(corpus: Corpus) -> dict[str, Any]:
    return {"format": "gqa", "questions": [corpus.questions], "images": corpus.images}


def _build(name: str, request: dict[str, Any]) -> Iterator[Line]:
    build_shards(**{"shard_bytes": SMALL_SHARD, "out": SHARDS / name, **request})
    yield f"shards.{name}.tars", files_digest(sorted((SHARDS / name).glob("*.tar")))
    yield f"shards.{name}.index", files_digest([SHARDS / name / "index.json"])


def _training(split: Split, texts: Texts, shares: list[Share]) -> Iterator[MicroBatch]:
    for share in shares:
        batches = TrainingBatches(split, texts, IMAGE_SIZE, share)
        loader = Loader(batches, workers=0, pin_memory=False)
        for epoch in range(EPOCHS):
            yield from loader.batches(training_keys(epoch, 0, split.steps_per_epoch, batches.accumulation))


def _evaluation(split: Split, texts: Texts, shares: list[Share], **options: Any) -> Iterator[MicroBatch]:
    for share in shares:
        batches = EvaluationBatches(split, texts, IMAGE_SIZE, share, **options)
        yield from Loader(batches, workers=0, pin_memory=False).batches(batches.all_keys())
