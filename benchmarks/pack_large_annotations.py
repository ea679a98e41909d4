"""Peak memory and time of reading and grouping one chunk of GQA's train_all questions, synthesised.

    python benchmarks/pack_large_annotations.py --scratch /tmp/large --json pack_large_annotations.json

GQA's ten chunks have 1.5 GB and 1.43 million questions each. The chunk is made of records with GQA's fields, in its
sizes, 193 per image, the images in no order. Reading and grouping run in a process of their own, while this one adds
up the resident memory of that process and all below it, 20 times a second.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CHUNK_BYTES = 1_500_000_000
QUESTIONS_PER_IMAGE = 193
COLORS = ("red", "green", "blue", "white", "black", "brown", "silver", "yellow")
NAMES = ("girl", "fire hydrant", "refrigerator", "table", "airplane", "backpack", "traffic light", "man")


def synthesise(path: Path, size: int, seed: int = 0) -> int:
    """Write a question file of about `size` bytes and return the number of questions."""
    rng = random.Random(seed)
    number = written = 0
    with path.open("w", encoding="utf-8") as file:
        file.write("{")
        image = 0
        while written < size:
            # A step that shares no factor with the range visits every image id once, in no order.
            image = (image + 7_919_191) % 100_000_000
            texts = []
            for _ in range(QUESTIONS_PER_IMAGE):
                texts.append(f'"{number:09d}": {json.dumps(record(rng, str(image), number))}')
                number += 1
            block = ", ".join(texts)
            written += file.write(block if written == 0 else ", " + block)
        file.write("}")
    return number


def record(rng: random.Random, image_id: str, number: int) -> dict:
    """One question with the fields of a train_all record, about a kilobyte of JSON."""
    name, other, color = rng.choice(NAMES), rng.choice(NAMES), rng.choice(COLORS)
    first, second = rng.randrange(10**6, 10**7), rng.randrange(10**6, 10**7)
    semantic = [
        {"operation": "select", "dependencies": [], "argument": f"{other} ({second})"},
        {"operation": "relate", "dependencies": [0], "argument": f"{name},to the left of,s ({first})"},
        {"operation": "filter color", "dependencies": [1], "argument": color},
        {
            "operation": "choose rel",
            "dependencies": [2],
            "argument": f"{name},to the left of|to the right of,s ({first})",
        },
    ]
    return {
        "semantic": semantic,
        "entailed": [f"{number + step:09d}" for step in range(1, rng.randrange(8))],
        "equivalent": [f"{number:09d}"],
        "question": f"Is the {color} {name} to the left or to the right of the {other} that is not large?",
        "imageId": image_id,
        "isBalanced": number % 13 == 0,
        "groups": {"global": None, "local": f"13-{other}_{name}"},
        "answer": rng.choice(("left", "right")),
        "semanticStr": "->".join(f"{step['operation']}: {step['argument']}" for step in semantic),
        "annotations": {
            "answer": {},
            "question": {"3:5": str(first), "14": str(second)},
            "fullAnswer": {"2": str(first)},
        },
        "types": {"detailed": "relChooser", "semantic": "rel", "structural": "choose"},
        "fullAnswer": f"The {name} is to the left of the {other}.",
    }


def group(path: Path, scratch: Path) -> dict[str, float]:
    """Read and group one file as a build does, and walk over the result; seconds, counts and this process's peak."""
    from shards.build.build_request import BuildRequest
    from shards.build.grouping import Grouping
    from shards.build.writer import read_and_group

    request = BuildRequest(format="gqa", questions=[path], images=scratch, out=scratch / "out")
    start = time.perf_counter()
    table = scratch / "questions.sqlite"
    with Grouping(table) as grouping:
        read_and_group(request, [path], grouping, scratch)
        read = time.perf_counter()
        images = questions = 0
        for image in grouping.images():
            images += 1
            questions += len(image.questions)
        walked = time.perf_counter()
        disk = table.stat().st_size
    return {
        "images": images,
        "questions": questions,
        "read_and_group_s": read - start,
        "walk_by_image_s": walked - read,
        "table_bytes": disk,
        "peak_bytes_of_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def resident_bytes(process: int) -> int:
    """Resident memory of a process and all below it; those that are gone count as 0."""
    total, pending = 0, [process]
    while pending:
        current = pending.pop()
        try:
            total += int(Path(f"/proc/{current}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{current}/task").iterdir():
                pending += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return total


def measure(path: Path, scratch: Path) -> dict[str, float]:
    """Run `group` in a process of its own and watch its memory."""
    result = scratch / "result.json"
    command = [sys.executable, __file__, "--scratch", str(scratch), "--group", str(path), "--json", str(result)]
    child = subprocess.Popen(command)
    peak = 0
    while child.poll() is None:
        peak = max(peak, resident_bytes(child.pid))
        time.sleep(0.05)
    if child.returncode != 0:
        sys.exit(child.returncode)
    return {**json.loads(result.read_text()), "peak_bytes_of_all_processes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where the large files go")
    parser.add_argument("--bytes", type=float, default=CHUNK_BYTES, help="size of the question file")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--group", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    if arguments.group is not None:
        arguments.json.write_text(json.dumps(group(arguments.group, arguments.scratch)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        path = scratch / "train_all_questions_0.json"
        written = synthesise(path, int(arguments.bytes))
        figures = {"file_bytes": path.stat().st_size, "written_questions": written, **measure(path, scratch)}
    figures["questions_per_s"] = figures["questions"] / figures["read_and_group_s"]
    assert figures["questions"] == written, "questions were lost"
    for label, value in figures.items():
        print(
            f"{label.replace('_', ' '):<30}{value:>18,.1f}"
            if isinstance(value, float)
            else f"{label.replace('_', ' '):<30}{value:>18,}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
