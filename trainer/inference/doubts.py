"""What one should know before believing an answer: words unknown to the model, and its answer without the photo."""

from PIL import Image

from trainer.inference.asking import Asking, Photos
from trainer.reporting.overlays import Answered

BLANK = (124, 116, 104)
"""The mean color of photos: as little of a photo as a model can be shown."""
HARDLY = 0.05
"""A part of 1: an answer that is not surer by so much with the photo than without owes the photo little."""
_NAMED = 5
"""Unknown words that a note names."""


def doubts(asking: Asking, shown: Photos, question: str, answered: Answered) -> tuple[str, ...]:
    """A line for each reason; costs another answer, about blank photos of the same sizes.

    Args:
        answered: what the model says about the photos.
    """
    unknown = unknown_words(asking, question)
    notes = []
    if unknown:
        more = "" if len(unknown) <= _NAMED else f" and {len(unknown) - _NAMED} more"
        notes.append(
            f"the model does not know {', '.join(unknown[:_NAMED])}{more}: it answers the rest of the question"
        )
    blank = tuple(Image.new("RGB", photo.size, BLANK) for photo in shown)
    (guess,) = asking.answers([blank], [question])
    if guess.text == answered.text and answered.confidence < guess.confidence + HARDLY:
        notes.append(
            f"no better than a guess from the question: without the photo the model says the same "
            f"({guess.confidence:.1%})"
        )
    return tuple(notes)


def unknown_words(asking: Asking, question: str) -> list[str]:
    """The words of a question that its tokenizer has no tokens for, in their order, each once."""
    tokenizers = asking.exported.built.tokenizers
    tokenizer = tokenizers.get("answer") or next(iter(tokenizers.values()), None)
    if tokenizer is None or tokenizer.unk_token_id is None:
        return []
    unknown = tokenizer.unk_token_id
    words = dict.fromkeys(question.split())
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False).input_ids]
