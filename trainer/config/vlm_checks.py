"""What cannot stand together where a vision-language model is the whole model."""

from collections.abc import Iterator

from model.config import ALL_LINEAR
from model.parts import PARTS
from model.references import SCRATCH
from shards.tasks import TASKS
from trainer.config.faults import Fault
from trainer.config.schema import RunConfig


def vlm_faults(config: RunConfig) -> Iterator[Fault]:
    """Contradictions of a recipe with `model.vlm`."""
    yield from _losses(config)
    yield from _adapters(config)
    if config.model.vlm == SCRATCH:
        yield Fault("model.vlm", f"{SCRATCH}: a vision-language model starts from a checkpoint; name one")
    if config.data.image_size is not None:
        yield Fault("data.image_size", "has no effect with model.vlm, whose processor sizes images; set it to null")
    if config.pnp.captioner is not None or config.pnp.reader is not None:
        yield Fault("pnp", "needs a trained fusion, and model.vlm is the whole model; remove it")


def _losses(config: RunConfig) -> Iterator[Fault]:
    task = TASKS[config.task]
    if task.reads.get("answer") != "ask":
        yield Fault("model.vlm", f"writes answers to questions, and task {config.task} asks none")
        return
    learnt = {"answer", "page"} & task.reads.keys()
    for part in PARTS:
        if part not in learnt and getattr(config.losses, part) > 0:
            yield Fault(
                f"losses.{part}", f"a vision-language model learns {' and '.join(sorted(learnt))} here; set it to 0"
            )
    if config.losses.answer == 0:
        yield Fault("losses.answer", "is 0, and a vision-language model is to write answers; give it a weight")
    if config.answers.by not in (None, "generate"):
        yield Fault(
            "answers.by", f"{config.answers.by}: a vision-language model writes its answers; set it to generate"
        )


def _adapters(config: RunConfig) -> Iterator[Fault]:
    sides = {"language": config.vlm.language, "vision": config.vlm.vision}
    if not any(side.rank for side in sides.values()):
        yield Fault(
            "vlm", "language.rank and vision.rank are both 0, so nothing would be trained; set one, such as to 16"
        )
    for name, side in sides.items():
        if side.rank and not side.targets:
            yield Fault(
                f"vlm.{name}.targets", f"is empty; name linear layers, such as [q_proj, v_proj], or {ALL_LINEAR}"
            )
    if all(side.rank for side in sides.values()) and len({side.dropout for side in sides.values()}) > 1:
        yield Fault("vlm.vision.dropout", "PEFT has one dropout for an adapter; set it to that of vlm.language")
