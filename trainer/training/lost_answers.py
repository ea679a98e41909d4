"""Which answers of a data set a tower cannot write, however well it is trained."""

from collections.abc import Mapping

from model.objective import AnswerCodec
from shards.lower_case import normalise

_SHOWN = 40


def lost_answers(codec: AnswerCodec, answers: Mapping[str, int]) -> str | None:
    """One line on the answers that do not come back from a tower's tokenizer as they are compared; None without any.

    Args:
        codec: how the tower writes answers.
        answers: answer -> count, of a split.
    """
    texts = sorted(answers)
    decoded = map(normalise, codec.decode(codec.answers(texts)))
    lost = {text: back for text, back in zip(texts, decoded, strict=True) if back != text}
    if not lost:
        return None
    example = min(lost, key=lambda text: (-answers[text], text))
    return (
        f"{len(lost):,} of {len(answers):,} answers ({sum(answers[text] for text in lost):,} of "
        f"{sum(answers.values()):,} questions) can never be matched: model.answer's tokenizer gives them back as other "
        f"texts, such as {example[:_SHOWN]!r} -> {lost[example][:_SHOWN]!r}; raise data.max_answer_tokens where it "
        "cuts them, or build shards with these answers as they come back"
    )
