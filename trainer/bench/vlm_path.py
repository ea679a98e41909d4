"""One path of `duoflow bench vlm` in a process of its own: `-m trainer.bench.vlm_path NAME SIZES THREADS DEVICE`.

What one path leaves in the allocator would be another's fresh memory. Each line of stdin is a request (`loss`, `step`,
`memory`, `write`); each gets a line of JSON.
"""

import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.bench.vlm_workload import VlmSizes, ask, batch_of, build_objective, plain_rows

TRL = "trl"


def main(name: str, sizes: str, threads: str, device: str) -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    torch.set_num_threads(int(threads))
    made = VlmSizes(**json.loads(sizes))
    step, write = _steps(name, made, torch.device(device))
    requests: dict[str, Callable[[], Any]] = {
        "loss": step,
        "step": lambda: _seconds(step, device),
        "memory": lambda: _peak_bytes(step, device),
        "write": lambda: _written(write, device),
    }
    for line in sys.stdin:
        print(json.dumps(requests[line.strip()]()), file=answers, flush=True)


def _steps(name: str, sizes: VlmSizes, device: torch.device) -> tuple[Callable[[], float], Callable[[], list]]:
    """A forward and backward pass that gives its loss, and an answering of all questions that gives their tokens."""
    asking = ask(sizes)
    objective = build_objective(sizes, shared=name in ("shared", "conversation"))
    objective.to(device=device, dtype=torch.float32)
    objective.place_frozen(device, torch.float32)
    batch = batch_of(asking, "rows" if name == TRL else name).to(device)
    if name == TRL:
        return _trl_step(objective, plain_rows(batch)), list

    def step() -> float:
        objective.zero_grad()
        output = objective(batch)
        output.loss.backward()
        return float(output.loss.detach())

    def write() -> list:
        return objective.write(batch).ids.tolist()

    return step, write


def _trl_step(objective: Any, rows: dict[str, torch.Tensor]) -> Callable[[], float]:
    """A training step of TRL's SFTTrainer, without its optimizer's: the others have none either."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<end>",
    )
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(prefix="trl."),
        use_cpu=next(objective.parameters()).device.type == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        per_device_train_batch_size=len(rows["input_ids"]),
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
    )
    trainer = SFTTrainer(
        model=objective.model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": [[0]]}),
        data_collator=lambda _: rows,
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1

    def step() -> float:
        objective.zero_grad()
        trainer.model.train(False)
        return float(trainer.training_step(trainer.model, dict(rows)))

    return step


def _seconds(step: Callable[[], Any], device: str) -> float:
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _written(write: Callable[[], list], device: str) -> dict[str, Any]:
    found: list = []
    return {"seconds": _seconds(lambda: found.extend(write()), device), "ids": found}


def _peak_bytes(step: Callable[[], Any], device: str) -> int:
    """How far a step goes above what is there before it: activations, gradients of adapters, working memory."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the step before has left would be used again, and not be seen
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{name}:"))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(*sys.argv[1:])
