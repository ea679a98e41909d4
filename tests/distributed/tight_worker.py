"""Trains as one rank that may take so many bytes of addresses beyond what its imports have taken.

python -m tests.distributed.tight_worker BYTES CONFIG
"""

import resource
import sys
from pathlib import Path


def main() -> int:
    import torch

    from trainer.training.rank import main as train

    torch.ones(1, requires_grad=True).sum().backward()  # autograd starts its threads, which take addresses

    more, config = sys.argv[1:]
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + int(more)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return train([config])


if __name__ == "__main__":
    sys.exit(main())
