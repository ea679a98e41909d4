"""What cannot stand together where the pages of documents are ranked."""

from collections.abc import Iterator

from model.references import SCRATCH
from shards.tasks import TASKS
from trainer.config.faults import Fault
from trainer.config.schema import RunConfig

_PART = "retrieve"


def ranks_pages(config: RunConfig) -> bool:
    """Whether a recipe is one of page retrieval, by its task or by its model."""
    return config.model.retrieval is not None or _PART in TASKS[config.task].reads


def retrieval_faults(config: RunConfig) -> Iterator[Fault]:
    """Contradictions of a recipe with `model.retrieval`, or with a task that needs one."""
    reference = config.model.retrieval
    if _PART not in TASKS[config.task].reads:
        task = next(name for name, data in TASKS.items() if _PART in data.reads)
        yield Fault(
            "model.retrieval", f"ranks pages, and task {config.task} does not; set task to {task}, or this to null"
        )
        return
    if reference is None:
        yield Fault("model.retrieval", f"is null, and task {config.task} ranks pages with it; name a CLIP or SigLIP")
        return
    if reference == SCRATCH:
        yield Fault("model.retrieval", f"{SCRATCH}: page retrieval starts from a checkpoint; name a CLIP or SigLIP")
    if config.model.vlm is not None:
        yield Fault("model.vlm", "is a whole model, and so is model.retrieval; set one of them to null")
    yield from _without_effect(config)
    yield from _trained(config)


def _without_effect(config: RunConfig) -> Iterator[Fault]:
    if config.data.image_size is not None:
        yield Fault(
            "data.image_size", "has no effect with model.retrieval, whose processor sizes pages; set it to null"
        )
    if config.data.pages_per_visit == 1:
        yield Fault("data.pages_per_visit", "1 leaves no wrong page to tell the right one from; set it to 2 or more")
    if config.pnp.captioner is not None or config.pnp.reader is not None:
        yield Fault("pnp", "needs a trained fusion, and model.retrieval is the whole model; remove it")


def _trained(config: RunConfig) -> Iterator[Fault]:
    frozen = config.retrieval.freeze
    for name in ("text", "vision"):
        lora, key = getattr(config.retrieval.lora, name), f"retrieval.lora.{name}"
        if lora.rank and not lora.targets:
            yield Fault(f"{key}.targets", "is empty; name linear layers, such as [q_proj, v_proj]")
        if lora.targets and not lora.rank:
            yield Fault(f"{key}.rank", "is 0 while targets are named, so nothing is adapted; set it, such as to 8")
        if lora.rank and name not in frozen:
            yield Fault(key, f"{name} is trained whole already; put it into retrieval.freeze, or set rank to 0")
    ranks = [getattr(config.retrieval.lora, name).rank for name in ("text", "vision")]
    if {"text", "vision"} <= set(frozen) and not any(ranks):
        yield Fault(
            "retrieval.freeze",
            "holds both towers and none of them is adapted, so that no ranking would change; take one out, or give "
            "retrieval.lora.text.rank a value",
        )
