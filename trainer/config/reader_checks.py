"""What cannot stand together where the words of pages are read."""

from collections.abc import Iterator

from model.references import SCRATCH
from shards.tasks import TASKS
from trainer.config.faults import Fault
from trainer.config.schema import RunConfig

_PART = "page"


def reader_faults(config: RunConfig) -> Iterator[Fault]:
    """Contradictions of a recipe with `model.reader`."""
    model, reader = config.model, config.reader
    if _PART not in TASKS[config.task].reads:
        task = next(name for name, data in TASKS.items() if _PART in data.reads)
        yield Fault(
            "model.reader",
            f"{model.reader} reads the words of pages, and task {config.task} has none; set task to {task}, or this to "
            "null",
        )
        return
    for key in ("vlm", "retrieval"):
        if getattr(model, key) is not None:
            yield Fault(f"model.{key}", "is a whole model, and so is model.reader; set one of them to null")
    if model.answer == SCRATCH:
        yield Fault("model.answer", f"{SCRATCH}: {model.reader} starts from a checkpoint; name a T5")
    if config.losses.answer == 0:
        yield Fault("losses.answer", "is 0, and nothing else trains the decoder; give it a weight")
    pages = config.data.pages_per_visit
    if pages is not None and pages > reader.max_pages:
        yield Fault(
            "data.pages_per_visit",
            f"{pages}, and the page head has places for {reader.max_pages}; lower it, or raise reader.max_pages",
        )
    least = reader.page_tokens + config.data.max_question_tokens
    if reader.max_page_tokens <= least:
        yield Fault(
            "reader.max_page_tokens",
            f"{reader.max_page_tokens} leaves no room for words behind reader.page_tokens + data.max_question_tokens = "
            f"{least}; raise it",
        )
    if config.data.image_size is not None:
        yield Fault("data.image_size", "has no effect with model.reader, which sees no pixels; set it to null")
    if config.pnp.captioner is not None or config.pnp.reader is not None:
        yield Fault("pnp", "needs a trained fusion, and model.reader is the whole model; remove it")
