"""What a run ran on, for `environment.json`: versions, commit, hosts, devices; never a secret."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config.schema import REPOSITORY

_PACKAGES = (
    "duoflow",
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "webdataset",
    "safetensors",
    "pydantic",
    "numpy",
    "pillow",
)
_PREFIXES = ("CUDA_", "NCCL_", "GLOO_", "TORCH_", "OMP_", "MKL_", "DS_", "HF_", "SLURM_", "MASTER_", "WORLD_SIZE")
"""Environment variables that change how a run behaves."""
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_USER_IN_URL = re.compile(r"//[^/@\s]*@")


def collect_environment(*, hosts: Sequence[str], devices: Sequence[str]) -> dict[str, Any]:
    """Everything that `environment.json` holds, as plain JSON values.

    Args:
        hosts: host name of each rank.
        devices: name of each rank's device, such as `cpu` or `NVIDIA H200`.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "versions": {name: _version(name) for name in _PACKAGES},
        "git": git_state(REPOSITORY),
        "world_size": len(hosts),
        "hosts": sorted(set(hosts)),
        "devices": list(devices),
        "cpus": os.cpu_count(),
        "variables": harmless_variables(os.environ),
    }


def harmless_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter to a run and whose names promise no secret; user names in URLs are cut out."""
    return {
        name: _USER_IN_URL.sub("//", value)
        for name, value in sorted(environment.items())
        if name.startswith(_PREFIXES) and not _SECRET.search(name)
    }


def git_state(directory: Path) -> dict[str, str | bool] | None:
    """Commit of a checkout, and whether files differ from it; None where there is no checkout or no git."""
    top = _git(directory, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != directory.resolve():  # an installed package inside somebody else's checkout
        return None
    commit = _git(directory, "rev-parse", "HEAD")
    changes = _git(directory, "status", "--porcelain")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
