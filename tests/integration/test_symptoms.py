"""Every symptom of docs/troubleshooting.md comes about, and the program says what the page quotes.

Each line in a box of the page belongs to one function below, which gets a run into that trouble by what a user, a disk
or a kernel would do. Nothing of the program is replaced.
"""

import csv
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from launch.processes.ranks import read_attendant, read_records, send_exactly
from shards.format.index import COLUMNS_NAME, read_index
from tests.distributed.forked_ranks import Forked
from tests.distributed.launch import ROOT, free_port
from tests.runs import LeftOver
from tests.trouble import (
    NEVER_BETTER,
    WAIT_SECONDS,
    Desk,
    Ranks,
    children_of,
    on_a_disk,
    place_of,
    tight_recipe,
    wait_for,
    within_memory,
)
from tests.unit.test_documented_commands import fenced

pytestmark = pytest.mark.integration

PAGE = ROOT / "docs" / "troubleshooting.md"
ANYTHING = (
    "(CUDA out of memory. Tried to allocate 2.00 GiB)",
    "(We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.)",
    "fusion.adapter_b.weight, heads.classify.0.weight",
    "parameters 0.07, gradients 0.07, optimizer 0.28, buffers 0.07, frozen 1.02",
    "memory is the likely cause: the cgroup counted 1 oom_kill since the start, limit 16.0 GiB",
    "broken data stream when reading image file",
    "reading data",
)
"""Parts of quoted lines that differ from one machine to the next: the words of allocators, of the hub's library and of
the kernel (which may have a log), lists of names, and what a rank was at."""
SMALL_DISK = 260_000
"""Bytes; a checkpoint of the tiny model takes three times as much."""


def quoted() -> list[str]:
    blocks = fenced(PAGE.read_text(encoding="utf-8"), "text")
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def pattern(line: str) -> re.Pattern[str]:
    """What a quoted line says of any run: numbers, names and paths are those of an example."""
    held = {part: f"\0{number}\0" for number, part in enumerate(ANYTHING)}
    for part, mark in held.items():
        line = line.replace(part, mark)
    words = [r".+" if "\0" in word else _word(word) for word in line.split()]
    return re.compile(r"\s".join(words))


def _word(word: str) -> str:
    """A word with a digit or a slash stands for any other; punctuation around it stays."""
    if re.search(r"[\d/]", word) or "rank" in word or word in ("my_run", "gqa"):
        return r"\S+"
    return re.escape(word)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("symptoms"))


# The loss


def same_questions(desk: Desk) -> str:
    every_visit = ("batch.visits=33", "batch.micro_visits=11", "limits.epochs=25")
    return desk.trains("run.name=same", *every_visit, "optim.lr=1e-30", "losses.itm=0", "data.val=null")


def hardly_any_answer(desk: Desk) -> str:
    """One of 1,600 questions has an answer."""
    photos = desk.home / "one_photo"
    photos.mkdir()
    Image.new("RGB", (40, 40), "red").save(photos / "a.jpg")
    rows = [("a.jpg", f"Is it number {number} ?", "yes" if number == 0 else "") for number in range(1600)]
    _write_rows(desk.home / "unanswered.csv", rows)
    built = ["--questions", "unanswered.csv", "--images", "one_photo", "--out", "unanswered"]
    desk.says("shards", "build", "--format", "csv", *built)
    task = ("losses.itm=0", "data.val=null", "limits.max_steps=60")
    return desk.trains(f"data.train={desk.home / 'unanswered'}", "run.name=unanswered", *task)


def no_gradient(desk: Desk) -> str:
    return desk.trains("run.name=weightless", "losses.itm=1e-60")


def does_not_look(desk: Desk) -> str:
    return desk.trains("run.name=blind", "optim.lr=1e-30", f"data.val={desk.data['train']}")


def same_questions_for_every_photo(desk: Desk) -> str:
    photos, rows = desk.home / "photos", []
    photos.mkdir()
    for number in range(10):
        color = ("red", "blue")[number % 2]
        drawn = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(drawn).ellipse((5 + number, 10, 40 + number, 45), fill=color)
        drawn.save(photos / f"{number}.jpg")
        rows += [(f"{number}.jpg", "What colour is the thing?", color), (f"{number}.jpg", "Is there a circle?", "yes")]
    _write_rows(desk.home / "rows.csv", rows)
    desk.says("init", "my_run", "--images", "photos", "--questions", "rows.csv")
    return desk.says("train", "my_run.yaml", "limits.max_steps=3")


def gradients_overflow(desk: Desk) -> str:
    return desk.trains("run.name=overflow", "optim.lr=1e30", "optim.warmup_steps=0", "limits.epochs=20")


# Memory


def too_wide(desk: Desk) -> str:
    return desk.says("train", str(desk.recipe), "run.name=wide", "model.scratch.width=40002")


def too_many_visits(desk: Desk) -> str:
    more_bytes, recipe = str(900 * 2**20), str(tight_recipe(desk, "tight"))
    return Forked("tests.distributed.tight_worker", [more_bytes, recipe], [desk.environment]).wait(WAIT_SECONDS).stdout


def killed_for_its_memory(desk: Desk) -> str:
    """A control group holds a rank, and not its first step."""
    return within_memory(desk, 1700 * 2**20, tight_recipe(desk, "killed"))


# Starts


def busy_port(desk: Desk) -> str:
    with socket.create_server(("", 0)) as other:
        place = place_of(0, 2, other.getsockname()[1])
        return desk.rank("run.name=busy", **place).wait(WAIT_SECONDS).stdout


def occupied(desk: Desk) -> str:
    directory = desk.directory("occupied")
    directory.create()
    with directory.lock():
        return desk.trains("run.name=occupied")


def ranks_without_a_starter(desk: Desk) -> str:
    """They work on when everything that has started them is gone."""
    run, endless = desk.directory("orphans"), ("run.name=orphans", "limits.epochs=100000", "data.val=null")
    desk.says("train", str(desk.recipe), "--detach", "engine.processes=2", *endless)
    wait_for(lambda: len(read_records(run.ranks)) == 2 and run.metrics.exists())
    attendant = read_attendant(run.ranks)
    assert attendant is not None
    starters = [attendant.process.pid, *children_of(attendant.process.pid)]
    ranks = [record.process for record in read_records(run.ranks)]
    for pid in starters:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in starters))
    try:
        return desk.says("train", str(desk.recipe), *endless)
    finally:
        send_exactly(signal.SIGKILL, ranks)


def nobody_else_comes(desk: Desk) -> str:
    quickly = "engine.start_timeout_seconds=2"
    return desk.rank("run.name=alone", quickly, **place_of(0, 2, free_port())).wait(WAIT_SECONDS).stdout


def rank_0_does_not_come(desk: Desk) -> str:
    quickly = "engine.start_timeout_seconds=2"
    return desk.rank("run.name=headless", quickly, **place_of(1, 2, free_port())).wait(WAIT_SECONDS).stdout


# Hangs


SOON = ("engine.heartbeat_seconds=0.2", "engine.timeout_seconds=2", "engine.start_timeout_seconds=60")


def reads_no_more(desk: Desk) -> str:
    """The worker that reads for rank 1 stands still, as it does on a mount that is gone."""
    ranks = Ranks(desk, "late", *SOON, "data.workers=1")
    workers = [pid for pid in children_of(ranks.pids[1]) if _is_worker(pid)]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    said = ranks.fail()
    for pid in workers:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    return said


def killed(desk: Desk) -> str:
    ranks = Ranks(desk, "killed_rank", *SOON)
    os.kill(ranks.pids[1], signal.SIGKILL)
    return ranks.fail()


def silent(desk: Desk) -> str:
    ranks = Ranks(desk, "silent", *SOON)
    os.kill(ranks.pids[1], signal.SIGSTOP)
    return ranks.fail()


# Disks


def small_disk(desk: Desk) -> str:
    return on_a_disk(desk, f"-o size={SMALL_DISK}", '"$@" train tiny.yaml run.directory=/mnt --dry-run')


def read_only_disk(desk: Desk) -> str:
    return on_a_disk(desk, "-o ro", '"$@" train tiny.yaml run.directory=/mnt run.name=never')


def disk_that_fills(desk: Desk) -> str:
    """Somebody else's file takes, in the middle of a run, what was free when it began."""
    long = "batch.visits=2 data.val=null"
    train = f'"$@" train tiny.yaml run.directory=/mnt run.name=filled {long} &'
    wait = "until [ -s /mnt/filled/metrics.jsonl ]; do sleep 0.1; done"
    return on_a_disk(desk, "-o size=8m", f"{train} {wait}; dd if=/dev/zero of=/mnt/other bs=1k 2>/dev/null; wait")


# Damage


def last_checkpoint_cut(desk: Desk) -> str:
    _cut(LeftOver(desk.copy("cut").path).checkpoint("last") / "model.safetensors")
    return desk.trains("run.name=cut", "limits.epochs=3", NEVER_BETTER)


def every_checkpoint_cut(desk: Desk) -> str:
    for path in desk.copy("ruined").checkpoints.glob("step*/model.safetensors"):
        _cut(path)
    return desk.trains("run.name=ruined", "limits.epochs=3", NEVER_BETTER)


def flipped_bit_in_an_export(desk: Desk) -> str:
    path = desk.copy("flipped").export / "fusion_encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return desk.says("evaluate", "runs/flipped", "--split", "val")


def broken_picture(desk: Desk) -> str:
    shards = _copied_shards(desk, "broken")
    index = read_index(shards)
    tar = shards / index.shards[0].name
    content = bytearray(tar.read_bytes())
    scan = content.index(b"\xff\xda")  # of a JPEG
    content[scan + 20 : scan + 400] = b"\xff" * 380
    tar.write_bytes(content)
    return desk.trains(f"data.train={shards}", "run.name=broken")


def cut_shard(desk: Desk) -> str:
    shards = _copied_shards(desk, "short")
    _cut(shards / read_index(shards).shards[0].name)
    return desk.trains(f"data.train={shards}", "run.name=short")


def edited_index(desk: Desk) -> str:
    shards = _copied_shards(desk, "edited")
    index = shards / "index.json"
    (shards / COLUMNS_NAME).unlink()  # what a run reads in its place, where it fits
    index.write_text(index.read_text().replace('"digest": "', '"digest": "0', 1))
    return desk.trains(f"data.train={shards}", "run.name=edited")


# Weights, and the same command


def weights_on_the_hub(desk: Desk) -> str:
    return desk.trains("model.vision=Salesforce/blip-vqa-base", "run.name=hub")


def weights_in_no_directory(desk: Desk) -> str:
    return desk.trains("model.answer=./blip", "run.name=nowhere")


def another_batch(desk: Desk) -> str:
    desk.copy("changed")
    return desk.trains("run.name=changed", "batch.visits=4")


def other_shards(desk: Desk) -> str:
    desk.copy("elsewhere")
    return desk.trains("run.name=elsewhere", f"data.train={desk.data['val']}")


def no_checkpoint_left(desk: Desk) -> str:
    for path in desk.copy("emptied").checkpoints.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return desk.trains("run.name=emptied")


SYMPTOMS: Mapping[str, Callable[[Desk], str]] = {
    "the model gives the same output": same_questions,
    "no gradient reached any parameter": hardly_any_answer,
    "take no part in the loss": no_gradient,
    "the answers do not depend": does_not_look,
    "the questions alone give more": does_not_look,
    "texts of the matching loss": same_questions_for_every_photo,
    "negatives have weight 0": same_questions_for_every_photo,
    "gradients were not finite": gradients_overflow,
    "which take 1,228.8 GB": too_wide,
    "out of memory with": too_many_visits,
    "signal 9": killed_for_its_memory,
    "another program listens": busy_port,
    "another process is training": occupied,
    "processes 4711, 4712": ranks_without_a_starter,
    "did not come within": nobody_else_comes,
    "rank 0 did not answer": rank_0_does_not_come,
    "waiting for others": reads_no_more,
    "ended without a word: it was killed": killed,
    "not been heard of": silent,
    "are free on the disk": small_disk,
    "cannot be written to": read_only_disk,
    "checkpoint not written": disk_that_fills,
    "JsonlRecorder": disk_that_fills,
    "going back to checkpoint": last_checkpoint_cut,
    "no checkpoint is intact": every_checkpoint_cut,
    "is not the file that was exported": flipped_bit_in_an_export,
    "cannot be decoded": broken_picture,
    "expected 51200 bytes": cut_shard,
    "damaged or edited": edited_index,
    "no config.json in the hub": weights_on_the_hub,
    "is no directory": weights_in_no_directory,
    "batch.visits: was 8": another_batch,
    "put the old values back": another_batch,
    "these are not the shards": other_shards,
    "this run has had one": no_checkpoint_left,
}
"""What stands in a quoted line alone -> what brings it about."""
_said: dict[Callable[[Desk], str], str] = {}


@pytest.mark.parametrize("line", quoted())
def test_what_the_page_quotes_is_said(line: str, desk: Desk):
    (part,) = [part for part in SYMPTOMS if part in line]
    bring_about = SYMPTOMS[part]
    said = _said.get(bring_about)
    if said is None:
        said = _said[bring_about] = bring_about(desk)
    assert pattern(line).search(said), said[-3000:]
    assert "Traceback" not in said


def test_no_symptom_is_left_that_the_page_does_not_have():
    assert not [part for part in SYMPTOMS if not any(part in line for line in quoted())]


def test_a_line_that_the_program_does_not_say_is_found():
    (line,) = [line for line in quoted() if "damaged or edited" in line]
    said = line.replace("my_run/shards", "another/place")
    assert pattern(line).search(said)
    assert not pattern(line).search(said.replace("edited", "changed"))


def _write_rows(path: Path, rows: list[tuple[str, str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "question", "answer"), *rows])


def _copied_shards(desk: Desk, name: str) -> Path:
    return Path(shutil.copytree(desk.data["train"], desk.home / name))


def _cut(path: Path) -> None:
    os.truncate(path, 1000)


def _is_worker(pid: int) -> bool:
    return "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()
