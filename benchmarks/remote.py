"""How long steps wait for data: from a directory, from a server that is 20 ms away, and from its copies.

    python -m benchmarks.remote --json remote.json

Pictures of noise are packed into shards of about 1 MiB. A step is a sleep of `--step-seconds`, so that what is
measured is whether the data is there; the first steps, which wait for the first shards of every lane, are given apart.
The server answers each request after 20 ms, at `--megabytes-per-second` for each connection. `bounded` has a cache of
half of the shards, so that it evicts and fetches during the whole epoch.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.identity_data import texts_of
from shards.atomic import check_writable
from shards.build.writer import build_shards
from shards.config import CacheConfig
from shards.plan import Order
from shards.read.loader import Loader
from shards.read.micro_batches import Split, TrainingBatches, alone, training_keys
from tests.rows import LetterCodec
from tests.servers import Behaviour, file_server

VISITS, LANES, SHUFFLE_SHARDS, AHEAD = 8, 4, 2, 8
FIRST_STEPS = 5
LATENCY_SECONDS = 0.02
IMAGE_SIZE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=800, help="pictures, of about 50 KB each")
    parser.add_argument("--step-seconds", type=float, default=0.15, help="what a step computes")
    parser.add_argument("--megabytes-per-second", type=float, default=4.0, help="of each connection")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="F", help="write the figures to this file as well")
    arguments = parser.parse_args()
    if arguments.json is not None:
        check_writable("--json", arguments.json)
    with tempfile.TemporaryDirectory() as scratch:
        figures = list(_measured(Path(scratch), arguments))
    print(f"{'data':<16}{'steps':>8}{'first steps wait':>18}{'then':>10}{'requests':>10}")
    for figure in figures:
        print(
            f"{figure['data']:<16}{figure['steps']:>8}{figure['first_wait_seconds']:>16.2f} s"
            f"{100 * figure['wait_share']:>8.2f} %{figure['requests']:>10}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"arguments": vars(arguments), "figures": figures}, indent=1, default=str))


def _measured(scratch: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    shards = _build(scratch, arguments.images)
    size = sum(path.stat().st_size for path in shards.glob("*.tar"))
    behaviour = Behaviour(latency_seconds=LATENCY_SECONDS, bytes_per_second=1e6 * arguments.megabytes_per_second)
    with file_server(shards, behaviour) as (url, _):
        caches = {
            "remote, cold": CacheConfig(directory=str(scratch / "cache"), ahead=AHEAD),
            "remote, warm": CacheConfig(directory=str(scratch / "cache"), ahead=AHEAD),
            "remote, bounded": CacheConfig(directory=str(scratch / "small"), bytes=size // 2, ahead=AHEAD),
        }
        yield {"data": "directory", **_epoch(str(shards), None, arguments), "requests": 0}
        for name, cache in caches.items():
            behaviour.requests.clear()
            yield {"data": name, **_epoch(url, cache, arguments), "requests": behaviour.requests.total()}


def _build(scratch: Path, num_images: int) -> Path:
    rng, images = np.random.default_rng(0), scratch / "images"
    images.mkdir()
    rows = []
    for number in range(num_images):
        noise = rng.integers(0, 256, (160, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number:05d}.jpg", quality=95)
        rows.append({"image": f"{number:05d}.jpg", "question": f"Is this picture {number}?", "answer": "yes"})
    questions = scratch / "rows.jsonl"
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    build_shards(
        format="jsonl", questions=[questions], images=images, out=scratch / "shards", shard_bytes=2**20, workers=1
    )
    return scratch / "shards"


def _epoch(place: str, cache: CacheConfig | None, arguments: argparse.Namespace) -> dict[str, float]:
    """Steps, seconds that the first ones waited, and the part of all others that was waiting."""
    order = Order(seed=1, questions_per_visit=4, visits_per_step=VISITS, lanes=LANES, shuffle_shards=SHUFFLE_SHARDS)
    dataset = TrainingBatches(
        Split(place, order, cache=cache), texts_of(LetterCodec(), LetterCodec(), ("answer",)), IMAGE_SIZE, alone(VISITS)
    )
    steps = dataset.split.steps_per_epoch
    batches = Loader(dataset, workers=arguments.workers, pin_memory=False).batches(training_keys(0, 0, steps, 1))
    waits = []
    for _ in range(steps):
        since = time.monotonic()
        next(batches)
        waits.append(time.monotonic() - since)
        time.sleep(arguments.step_seconds)
    waited = sum(waits[FIRST_STEPS:])
    computed = arguments.step_seconds * (steps - FIRST_STEPS)
    return {
        "steps": steps,
        "first_wait_seconds": sum(waits[:FIRST_STEPS]),
        "wait_share": waited / (waited + computed),
        "longest_wait_seconds": max(waits[FIRST_STEPS:]),
    }


if __name__ == "__main__":
    main()
