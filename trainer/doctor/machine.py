"""What this machine is: Python, torch and its GPUs, cores, memory, disk, and whether DeepSpeed starts."""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.processes.local import count_gpus
from trainer.config.schema import REPOSITORY
from trainer.doctor.packages import installed_version
from trainer.doctor.table import Row

ENGINE_START = "trainer.doctor.engine_start"
ENGINE_SECONDS = 300
"""After this time a start of DeepSpeed counts as one that hangs."""
SHARED_MEMORY = Path("/dev/shm")
"""Through it the loader's workers hand over batches."""
BF16_CAPABILITY = 8
"""First major compute capability with bf16 (Ampere)."""

_GPU_DRIVER = Path("/dev/nvidiactl")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GIB = 2**30


def machine_rows() -> list[Row]:
    """Everything that does not depend on a recipe. Imports torch, and starts DeepSpeed once in another process."""
    gpus = count_gpus(os.environ)
    return [
        Row("python", f"{platform.python_version()} (at least 3.11) at {sys.executable}"),
        *torch_rows(),
        Row("ranks", f"{max(1, gpus)} by default, on {'GPU' if gpus else 'CPU'}"),
        Row("cpu", f"{len(os.sched_getaffinity(0))} cores"),
        Row("memory", _memory()),
        Row("disk", f"{shutil.disk_usage('.').free / _GIB:.1f} GiB free in {Path.cwd()}"),
        Row("shared memory", _shared_memory()),
        engine_start_row(),
    ]


def torch_rows() -> Iterator[Row]:
    """torch's build, and a row for each GPU that it sees."""
    try:
        import torch
    except ModuleNotFoundError:
        return  # the packages name it
    except (ImportError, OSError) as error:
        yield Row("torch", f"does not import: {error}", f"does not import ({error}); install it again")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield Row("torch", f"{torch.__version__}, built for {build}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number == 0 and _GPU_DRIVER.exists():
        reason = str(caught[0].message).splitlines()[0] if caught else f"torch is built for {build}"
        advice = "a CUDA build that fits the driver: https://pytorch.org/get-started/locally"
        yield Row("gpu", f"an NVIDIA driver, but no GPU for torch: {reason}", steps=(advice,))
    elif number == 0:
        yield Row("gpu", "none: runs go to the CPU, in fp32")
    for device in range(number):
        properties = torch.cuda.get_device_properties(device)
        capability = (properties.major, properties.minor)
        yield gpu_row(device, properties.name, properties.total_memory, capability, torch.cuda.get_arch_list())


def gpu_row(
    number: int, name: str, memory_bytes: int, capability: tuple[int, int], architectures: Sequence[str]
) -> Row:
    """A GPU, at fault if torch has no kernels for it.

    Args:
        capability: compute capability, (major, minor).
        architectures: for which torch was built, such as `sm_90` or `compute_120`.
    """
    kinds = "fp16 and bf16" if capability[0] >= BF16_CAPABILITY else "fp16, no bf16"
    dotted = ".".join(map(str, capability))
    found = f"{name}, {memory_bytes / _GIB:.1f} GiB, compute capability {dotted}, {kinds}"
    if runs_on(capability, architectures):
        return Row(f"gpu {number}", found)
    return Row(
        f"gpu {number}",
        found,
        f"{name}: this torch has no kernels for compute capability {dotted} (it has {', '.join(architectures)}); "
        "install a build that has, or set DS_ACCELERATOR=cpu",
    )


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether one of the builds runs on a GPU: binaries on their major version from their minor on, PTX on any later.

    Source: CUDA C++ programming guide, binary and PTX compatibility; a suffix such as `a` binds to exactly one.
    """
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if match is None:
            continue
        built = (int(match[2]), int(match[3]))
        if match[4]:
            fits = built == capability
        else:
            fits = built <= capability and (match[1] == "compute" or built[0] == capability[0])
        if fits:
            return True
    return False


def engine_start_row(module: str = ENGINE_START) -> Row:
    """Start DeepSpeed in a process of its own that finds no compiler: one rank, one parameter, one step."""
    version = installed_version("deepspeed")
    if version is None:
        return Row("deepspeed starts", "not installed")
    started = time.monotonic()
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-m", module],
            env=_environment_without_compiler(),
            capture_output=True,
            text=True,
            timeout=ENGINE_SECONDS,
            check=False,
        )
        failure = _last_line(result.stderr) or f"exit code {result.returncode}" if result.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"no answer within {ENGINE_SECONDS} s"
    if failure is None:
        return Row("deepspeed starts", f"{version}, without a compiler, in {time.monotonic() - started:.0f} s")
    return Row(
        "deepspeed starts",
        f"{version} does not: {failure}",
        f"deepspeed {version} does not start without a compiler: {failure}; run "
        "`DS_BUILD_OPS=0 pip install --force-reinstall --no-deps deepspeed`, or install g++",
        ("DS_BUILD_OPS=0 pip install --force-reinstall --no-deps deepspeed",),
    )


def shared_memory_free() -> int | None:
    """Bytes free in /dev/shm; None where there is none."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def _environment_without_compiler() -> dict[str, str]:
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    alone |= {"CC": "/nonexistent", "CXX": "/nonexistent"}
    alone["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), alone.get("PYTHONPATH")]))
    return alone


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _memory() -> str:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return "unknown: /proc/meminfo does not say"
    limit = _cgroup_limit()
    limited = f", limited to {limit / _GIB:.1f} GiB for this container" if limit is not None and limit < total else ""
    return f"{total / _GIB:.1f} GiB, {available / _GIB:.1f} GiB available{limited}"


def _cgroup_limit() -> int | None:
    try:
        return int(_CGROUP_LIMIT.read_text())
    except (OSError, ValueError):  # not there, or `max`
        return None


def _shared_memory() -> str:
    free = shared_memory_free()
    return f"no {SHARED_MEMORY}" if free is None else f"{free / _GIB:.2f} GiB free in {SHARED_MEMORY}"
