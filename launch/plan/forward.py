"""Which environment variables ranks on other hosts get: what changes numbers, network or caches, and no secret.

ssh hands nothing over. DeepSpeed's runner exports what begins with PYTHON, NCCL, UCX, MV2 or MLFLOW, unchecked, and
what a file says: `$DS_ENV_FILE`, or a `.deepspeed_env` of the home or the working directory. So it is given an
environment without the former, and a file of ours for the latter.
"""

import re
from collections.abc import Mapping

from launch.plan.words import LaunchFault, safe_value

FORWARDED = frozenset(
    (
        *("DS_ACCELERATOR", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE", "LD_LIBRARY_PATH"),
        *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TRITON_CACHE_DIR"),
        *("PYTHONHASHSEED", "PYTHONFAULTHANDLER", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
        *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
        *("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    )
)
PREFIXES = (
    *("OMP_", "KMP_", "MKL_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_", "UCX_", "FI_"),
    *("HF_", "FSSPEC_", "DUOFLOW_"),
)
"""Every variable that begins so is forwarded as well."""
NEVER = frozenset({"CUDA_VISIBLE_DEVICES"})
"""The node's launcher sets it from the slots."""

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH")
_NOT_SECRET = frozenset({"TOKENIZERS_PARALLELISM"})
_LOGIN_IN_URL = re.compile(r"://[^/]*@")

_EXPORTED_BY_RUNNER = ("PYTHON", "NCCL", "UCX", "MV2", "MLFLOW")
_READ_BY_PDSH = ("WCOLL", "DSHPATH", "PDSH_MODULE_DIR", "PDSH_REMOTE_PDSH_PATH", "FANOUT")
"""They would change which hosts pdsh asks, or what it asks them."""
KEEP_ALIVE = (
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=3"),
)
"""Without it ssh, and so the launcher, waits for ever on a dead link. ssh takes the first value that it finds for an
option, so what the user has set before stands."""


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this environment that ranks on other hosts get.

    Raises:
        LaunchFault: the value of one of them does not pass a remote shell unchanged.
    """
    return {name: safe_value(name, environment[name]) for name in sorted(environment) if _travels(name, environment)}


def environment_file(variables: Mapping[str, str]) -> str:
    """The text of the file that DS_ENV_FILE names."""
    return "".join(f"{name}={safe_value(name, value)}\n" for name, value in sorted(variables.items()))


def runner_environment(environment: Mapping[str, str], variables: Mapping[str, str], file: str) -> dict[str, str]:
    """The environment of DeepSpeed's runner, in which nothing is left that it would export by itself.

    Args:
        environment: of this process.
        variables: what the file holds: those that Python reads are needed here too.
        file: absolute path of the environment file.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(_EXPORTED_BY_RUNNER) and name not in _READ_BY_PDSH
    }
    own = {name: value for name, value in variables.items() if name.startswith("PYTHON")}
    ssh = " ".join(filter(None, [environment.get("PDSH_SSH_ARGS_APPEND", "").strip(), *KEEP_ALIVE]))
    return {**kept, **own, "DS_ENV_FILE": file, "PDSH_SSH_ARGS_APPEND": ssh}


def ssh_options(environment: Mapping[str, str]) -> list[str]:
    """What this environment gives to the ssh of pdsh, for our own calls of ssh.

    Raises:
        LaunchFault: quotes, which pdsh would not read as quotes.
    """
    own = environment.get("PDSH_SSH_ARGS_APPEND", "")
    if re.search(r"[\"'\\]", own):
        raise LaunchFault(
            f"PDSH_SSH_ARGS_APPEND: {own!r}: pdsh splits it at blanks and reads no quotes; leave them out"
        )
    return [*own.split(), *KEEP_ALIVE]


def _travels(name: str, environment: Mapping[str, str]) -> bool:
    if name in NEVER or not (name in FORWARDED or name.startswith(PREFIXES)):
        return False
    if _SECRET.search(name) and name not in _NOT_SECRET:
        return False
    value = environment[name]
    return value != "" and not _LOGIN_IN_URL.search(value)
