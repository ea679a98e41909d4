"""What follows from the sizes of a data set: a model and a course that fit it, each with its reason. Pure."""

from typing import NamedTuple

from trainer.own.facts import MOST_QUESTIONS, Facts

STEPS = 1_000
"""Optimizer steps of a first model: minutes on two cores at the sizes below."""
MOST_EPOCHS = 200
"""A handful of images repeated more often than that teaches nothing new."""
MOST_VISITS = 16
SMALL_PICTURE = 96
"""Pixels of the shorter side up to which a picture is taken for an icon, not for a photo."""
GRID = 8
"""Patches along a side, for all sizes: the cost of a step does not depend on the size of the pictures."""
VALIDATIONS = 10
PATIENCE = 4
MOST_VALIDATED = 500
FEWEST_FOR_LEARNING = 200
"""Training images below which a model that starts from random weights mostly learns texts by heart."""
_LARGEST_VOCABULARY = 8_000
_LONGEST_QUESTION, _LONGEST_ANSWER = 64, 24


class Choice(NamedTuple):
    """A value of the recipe, and why."""

    key: str
    """Dotted, of the recipe."""
    value: int | float | str
    why: str


class Choices(NamedTuple):
    """Everything that is chosen by the data."""

    image_size: int
    patch_size: int
    questions_per_visit: int
    max_question_tokens: int
    max_answer_tokens: int
    vocab_size: int
    visits: int
    epochs: int
    warmup_steps: int
    validate_every: int
    steps: int
    """Optimizer steps of the whole run."""


def choose(facts: Facts) -> Choices:
    """The sizes and the course of a first model."""
    image_size = 64 if facts.short_side <= SMALL_PICTURE else 128
    questions_per_visit = min(MOST_QUESTIONS, facts.most_per_image)
    visits = 1 << min(MOST_VISITS, facts.train_visits).bit_length() - 1
    per_epoch = -(-facts.train_visits // visits)
    epochs = min(MOST_EPOCHS, -(-STEPS // per_epoch))
    return Choices(
        image_size=image_size,
        patch_size=image_size // GRID,
        questions_per_visit=questions_per_visit,
        max_question_tokens=min(_LONGEST_QUESTION, _upwards(facts.longest_question + 4, 8)),
        max_answer_tokens=min(_LONGEST_ANSWER, facts.longest_answer + 4),
        vocab_size=min(_LARGEST_VOCABULARY, _upwards(facts.words + 2 * facts.characters + 7, 100)),
        visits=visits,
        epochs=epochs,
        warmup_steps=min(100, epochs * per_epoch // 10),
        validate_every=-(-epochs // VALIDATIONS),
        steps=epochs * per_epoch,
    )


def explain(facts: Facts, chosen: Choices) -> list[Choice]:
    """The choices in the order of the recipe, each with its reason in a few words."""
    per_epoch = chosen.steps // chosen.epochs
    return [
        Choice(
            "model.scratch.image_size",
            chosen.image_size,
            f"the shorter side of the middlemost image has {facts.short_side:,} pixels",
        ),
        Choice(
            "model.scratch.vocab_size",
            chosen.vocab_size,
            f"{facts.words:,} different words in training, and letters for all others",
        ),
        Choice(
            "losses.answer",
            1.0,
            f"answers are written as text, so that new ones can be: {facts.answers:,} different ones, at most "
            f"{_count(facts.longest_answer, 'word')}",
        ),
        Choice(
            "data.questions_per_visit",
            chosen.questions_per_visit,
            f"an image has up to {_count(facts.most_per_image, 'question')}, and is read once for so many",
        ),
        Choice(
            "data.max_question_tokens",
            chosen.max_question_tokens,
            f"words and signs: the longest question has {facts.longest_question}",
        ),
        Choice("batch.visits", chosen.visits, f"{_count(per_epoch, 'step')} through {facts.train_images:,} images"),
        Choice("limits.epochs", chosen.epochs, f"{chosen.steps:,} steps in all, fewer if it stops early"),
        Choice(
            "validate_every.epochs",
            chosen.validate_every,
            f"about {-(-chosen.epochs // chosen.validate_every)} validations; {PATIENCE} without progress end the run",
        ),
    ]


def doubts(facts: Facts) -> list[str]:
    """What a model of this data will not be able to do, a line each."""
    lines = []
    if facts.train_images < FEWEST_FOR_LEARNING:
        lines.append(
            f"{facts.train_images:,} training images are few for a model that starts from random weights: it learns "
            f"them by heart, and validation shows it; take {FEWEST_FOR_LEARNING} or more, or the weights of BLIP (last "
            "lines of the recipe)"
        )
    if facts.val_questions < 100:
        lines.append(
            f"only {_count(facts.val_questions, 'validation question')}: one is {100 / facts.val_questions:.1f} % of "
            "the accuracy, so small differences mean nothing"
        )
    if facts.unseen > 0:
        lines.append(
            f"{100 * facts.unseen:.1f} % of the validation questions have an answer that no training question has: a "
            "model can hardly get them right"
        )
    if facts.same_questions:
        lines.append(
            "every image is asked the same questions: matching has no wrong one to compare with and learns nothing, so "
            "that an overlay shows nothing of what the model saw; ask different things of different images, or set "
            "losses.itm to 0.0, which is faster"
        )
    if facts.answers == 1:
        lines.append(f"every answer is {facts.commonest!r}: there is nothing to learn")
    return lines


def _upwards(number: int, step: int) -> int:
    return -(-number // step) * step


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
