"""What a host has for a run, as one answer of JSON, for a machine that compares hosts before it starts on them."""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.code import in_one, source_digests

NAMED = 3
"""So many of the shards that are missing are named."""
GPU_SECONDS = 20


def probe(run: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Look at this host.

    Args:
        run: a run's directory, there or not.
        request: `packages`, names of distributions; `splits`, directories of shards by split.
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in request["packages"]},
        "code": in_one(source_digests()),
        "gpus": gpu_names(),
        "disk": _disk(run),
        "splits": {split: look_at_split(Path(directory)) for split, directory in request["splits"].items()},
        "clock": time.time(),
    }


def look_at_split(directory: Path) -> dict[str, Any]:
    """A split as it lies here: the digest of its index, and the shards that are missing or of another size.

    Bytes are not read again: that is what `duoflow shards verify` is for.
    """
    try:
        text = (directory / "index.json").read_bytes()
        sizes = {str(shard["name"]): int(shard["bytes"]) for shard in json.loads(text)["shards"]}
    except OSError as error:
        return {"fault": f"{directory}/index.json: {error.strerror}"}
    except (ValueError, KeyError, TypeError):
        return {"fault": f"{directory}/index.json: is no index of shards"}
    wrong = sorted(name for name, size in sizes.items() if _size(directory / name) != size)
    return {
        "index": hashlib.sha256(text).hexdigest(),
        "shards": len(sizes),
        "bytes": sum(sizes.values()),
        "wrong": len(wrong),
        "such_as": wrong[:NAMED],
    }


def gpu_names() -> list[str]:
    """The GPUs that the driver shows, by name; by their device files where nobody can ask it."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=GPU_SECONDS,
            check=False,
        )
        if answer.returncode == 0:
            return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.TimeoutExpired):
        pass  # the device files are there in any case
    return ["NVIDIA GPU"] * len(list(Path("/dev").glob("nvidia[0-9]*")))


def _disk(run: Path) -> dict[str, Any]:
    """Free bytes where a run's directory is, or would be made, and whether this user may write there."""
    place = next(path for path in (run, *run.parents) if path.is_dir())
    return {"place": str(place), "free": shutil.disk_usage(place).free, "writable": os.access(place, os.W_OK)}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
