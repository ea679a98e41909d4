"""Lower case and single spaces: how a generated answer is compared, and which answers of a data set are not so."""

from collections.abc import Mapping


def normalise(text: str) -> str:
    """Lower case, stripped, white space collapsed: when two texts count as the same."""
    return " ".join(text.lower().split())


def unmatched_answers(answers: Mapping[str, int]) -> str | None:
    """One line on the answers that no generated one can match; None where there are none.

    A generated answer is normalised before it is compared, and the data set's is taken as it is written: that is how
    GQA is scored, whose answers are in lower case.

    Args:
        answers: answer -> count, of a split.
    """
    odd = {answer: count for answer, count in answers.items() if answer != normalise(answer)}
    if not odd:
        return None
    example = min(odd, key=lambda answer: (-odd[answer], answer))[:40]
    return (
        f"{sum(odd.values()):,} of {sum(answers.values()):,} answers are not in lower case with single spaces, such as "
        f"{example!r}: an answer that a model writes is brought to that form and compared, so these always count as "
        "wrong; write them in lower case, or build with --lowercase-answers into another --out"
    )
