"""What this device can do at most: operations per second of a large dense matrix product, measured."""

import time

import torch

CPU_SIDE, CUDA_SIDE = 1024, 8192
AT_A_TIME = {"cpu": 1, "cuda": 8}
"""Products behind each other: what starting one costs a GPU disappears."""
AT_LEAST_SECONDS = 0.1


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest of some products; ranks that share a machine measure at the same time."""
    side, times = (CUDA_SIDE, AT_A_TIME["cuda"]) if device.type == "cuda" else (CPU_SIDE, AT_A_TIME["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    # Ones would draw less power than data, and run at a higher clock.
    left, right = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    best, began, runs = 0.0, time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - began < AT_LEAST_SECONDS:
        started = time.perf_counter()
        for _ in range(times):
            torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 * times / (time.perf_counter() - started))
        runs += 1
    return best
