"""What a run may do and hardly anybody wants: said at its start and in `--dry-run`, a line each, with the way out."""

from collections.abc import Iterator

from model.config import text_towers
from model.references import SCRATCH
from shards.errors import UserError
from shards.format.index import SplitIndex, index_digest, open_index
from shards.plan import Visits, limit_images, steps_per_epoch
from shards.tasks import TASKS
from trainer.config import RunConfig
from trainer.config.schema import plan_order
from trainer.run_directory import RunDirectory
from trainer.training.milestones import Milestones
from trainer.training.preflight import past_of
from trainer.training.schedule import schedule_of

JUMP = 1.5
"""A rate that changes by more than this factor from one step to the next is a jump."""
SPECIAL_TOKENS = 7
"""Of the vocabulary that an untrained text tower is given (model.towers.tokenizer, which imports transformers)."""


def caveats(config: RunConfig, previous: RunConfig | None) -> list[str]:
    """Everything of the kind about a run whose recipe has passed its checks; nothing where its shards are not at hand,
    as on a machine that only starts ranks elsewhere.

    Args:
        previous: what the run of this name was last started with, where it goes on.
    """
    if config.data.train is None:
        return []  # the checks of a start say so
    try:
        index = open_index(config.data.train)
        lines = [*_same_data(config), *_vocabulary(config, index)]
    except UserError:
        return []
    total = total_steps(config, index)
    lines += _warm_up(config, total)
    if previous is not None and (past := past_of(RunDirectory.of(config))) is not None:
        lines += rate_jump(previous, config, step=past.step, before=total_steps(previous, index), after=total)
    return lines


def total_steps(config: RunConfig, train: SplitIndex) -> int:
    """Optimizer steps of a whole run over a training split."""
    visits = Visits(limit_images(train.num_questions, config.data.limit), config.data.questions_per_visit)
    return Milestones.of(config, steps_per_epoch(len(visits), plan_order(config))).total_steps


def rate_jump(previous: RunConfig, config: RunConfig, *, step: int, before: int, after: int) -> Iterator[str]:
    """Whether the learning rate leaves its course where the run goes on: a schedule is a function of the whole run's
    length, so another length is another course.

    Args:
        previous: of the steps until now.
        config: of the steps from now on.
        step: optimizer steps taken.
        before: total steps of `previous`.
        after: total steps of `config`.
    """
    if step == 0 or step >= after:
        return
    old = schedule_of(previous.optim, before)(min(step, before - 1))
    new = schedule_of(config.optim, after)(step)
    if old <= 0 or new <= 0 or max(old / new, new / old) <= JUMP:
        return
    yield (
        f"{_changed(previous, config)}: the learning rate jumps from {old:.1e} to {new:.1e} at step {step:,}, because "
        f"{_why(before, after)}; optim.lr={config.optim.lr * old / new:.1e} goes on at the old rate, and "
        "initialize_from with another run.name begins a course of its own"
    )


def _changed(previous: RunConfig, config: RunConfig) -> str:
    """The key that has changed the course."""
    for name in ("epochs", "max_steps"):
        if getattr(previous.limits, name) != getattr(config.limits, name):
            return f"limits.{name}"
    return "optim"


def _why(before: int, after: int) -> str:
    """Why a schedule is another one."""
    if before == after:
        return "the recipe's optim section has changed"
    return f"its course is stretched over {after:,} steps in place of {before:,}"


def _warm_up(config: RunConfig, total: int) -> Iterator[str]:
    warm_up = config.optim.warmup_steps
    if warm_up >= total:
        highest = schedule_of(config.optim, total)(total - 1)
        yield (
            f"optim.warmup_steps: {warm_up:,}, and the run has {_steps(total)}: the learning rate only climbs, to "
            f"{highest:.1e} in place of optim.lr {config.optim.lr:.1e}; set it to {total // 10:,}, or train longer"
        )


def _same_data(config: RunConfig) -> Iterator[str]:
    train, val = config.data.train, config.data.val
    if train is not None and val is not None and (train == val or index_digest(train) == index_digest(val)):
        yield (
            f"data.val: {val} is what the run trains on, so validation measures what was learnt by heart, and early "
            "stopping never sees it; keep some images apart (`duoflow init` does), or set data.val=null"
        )


def _vocabulary(config: RunConfig, train: SplitIndex) -> Iterator[str]:
    """By the words of answers alone, which the index has."""
    model = config.model
    towers = text_towers(TASKS[config.task], config.losses)
    of_images = model.vlm is None and model.reader is None and model.retrieval is None
    if not of_images or not any(getattr(model, tower, None) == SCRATCH for tower in towers):
        return
    words = {word for answer in train.answers for word in answer.lower().split() if len(word) > 1}
    letters = len({letter for word in words for letter in word})
    room = max(0, model.scratch.vocab_size - SPECIAL_TOKENS - 2 * letters)
    if words and room < len(words) / 2:
        yield (
            f"model.scratch.vocab_size: {model.scratch.vocab_size} has room for {room:,} words beside the letters, and "
            f"the answers alone have {len(words):,}: the rest is read and written letter by letter; raise it to "
            f"{SPECIAL_TOKENS + 2 * letters + len(words):,} or more"
        )


def _steps(number: int) -> str:
    return f"{number:,} step{'' if number == 1 else 's'}"
