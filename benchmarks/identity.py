"""A yardstick: digests of shards, batches, losses, exports and predictions, which a change of structure leaves equal.

    python -m benchmarks.identity                                      print `name  value`
    python -m benchmarks.identity --json benchmarks/identity.json      write them too
    python -m benchmarks.identity --check benchmarks/identity.json     list what differs; exits 1 if anything does

Losses and weights depend, in their last bits, on the kernels that torch chooses for a CPU, and some files on the
versions of libraries: the values in identity.json are those of one machine, which it describes. On another one, write
a file before a change and check against it after.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.identity_data import Line, shard_lines, stream_lines
from benchmarks.identity_variants import VARIANTS, codecs, recorded_lines, run_lines, variant_lines, write_towers

PACKAGES = ("torch", "transformers", "tokenizers", "peft", "deepspeed", "safetensors", "pillow")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="F", type=Path, help="write the values to a file")
    parser.add_argument("--check", metavar="F", type=Path, help="compare with the values in a file")
    options = parser.parse_args(arguments)
    expected = json.loads(options.check.read_text(encoding="utf-8")) if options.check else None
    os.environ["DS_ACCELERATOR"] = "cpu"  # otherwise DeepSpeed looks for another one, and says so among the values
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    started, values = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="identity.") as home, contextlib.chdir(home):
        for name, value in lines():
            assert name not in values, name
            values[name] = value
            print(f"{name}  {value}", flush=True)
    print(f"{len(values)} values in {time.monotonic() - started:.0f} s", file=sys.stderr)
    found = {"made_with": made_with(), "values": values}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if expected is None else check(found, expected)


def lines() -> Iterator[Line]:
    """All values in their order; the working directory is written to."""
    yield from shard_lines()
    write_towers()
    yield from stream_lines(codecs())
    for name in VARIANTS:
        yield from variant_lines(name)
    yield from run_lines()
    yield from recorded_lines()


def made_with() -> dict[str, str]:
    """What bits may depend on beside this code."""
    return {name: version(name) for name in PACKAGES} | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


def check(found: dict[str, dict[str, str]], expected: dict[str, dict[str, str]]) -> int:
    """Print every difference; 1 if there is one among the values."""
    for name, theirs, ours in differences(expected["made_with"], found["made_with"]):
        print(f"made with another {name}: {theirs} then, {ours} now; bits may differ for that alone")
    different = differences(expected["values"], found["values"])
    for name, theirs, ours in different:
        print(f"DIFFERS {name}\n  expected  {theirs}\n  found     {ours}")
    print(f"{len(different)} of {len(expected['values'].keys() | found['values'].keys())} values differ")
    return 1 if different else 0


def differences(expected: dict[str, str], found: dict[str, str]) -> list[tuple[str, str, str]]:
    """(name, expected, found) of what is not equal, or is in one of them alone."""
    names = [*expected, *(name for name in found if name not in expected)]
    pairs = ((name, expected.get(name, "nothing"), found.get(name, "nothing")) for name in names)
    return [(name, theirs, ours) for name, theirs, ours in pairs if theirs != ours]


if __name__ == "__main__":
    sys.exit(main())
