"""What `--device` of a benchmark means."""

from typing import Any

from shards.errors import UserError


def bench_device(name: str | None) -> Any:
    """A torch.device: the one of that name, or CUDA where there is one.

    Raises:
        UserError: CUDA was asked for, and torch sees none.
    """
    import torch  # only once a benchmark runs: `duoflow --help` should not wait for it

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            f"--device cuda: torch {torch.__version__} sees no CUDA device on this machine; "
            "measure with --device cpu, or install a torch that is built for this machine's driver"
        )
    return torch.device(name or ("cuda" if available else "cpu"))
