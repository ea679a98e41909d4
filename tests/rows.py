"""What tests of rows and micro-batches share: a codec whose tokens can be read, and the leaves of a batch."""

from collections.abc import Iterator, Mapping, Sequence


class LetterCodec:
    """A token per letter; enough to see which text is where."""

    pad_id, start_id, end_id, limit = 0, 1, 2, 14

    def questions(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        return [self._ids(text)[: self.limit] for text in texts], [len(text) > self.limit for text in texts]

    def pairs(self, questions: Sequence[str], answers: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        asked, cut = self.questions(questions)
        return [[*q, self.end_id, *a] for q, a in zip(asked, self.answers(answers), strict=True)], cut

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._ids(text)[:10] for text in texts]

    @staticmethod
    def _ids(text: str) -> list[int]:
        return [3 + ord(letter) for letter in text]


def leaves(value: object, name: str = "batch") -> Iterator[tuple[str, object]]:
    """Whatever a batch holds in the end, by its path."""
    if isinstance(value, tuple):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, Mapping):
        parts = value.items()
    else:
        yield name, value
        return
    for key, part in parts:
        yield from leaves(part, f"{name}.{key}")
