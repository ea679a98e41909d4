"""Statements about images that are to be labelled: a row for each image that a statement is about."""

from collections.abc import Sequence

from shards.format.records import Statement
from shards.tasks.seam import Draw, Row, Rows, Visit, Wanted


def statement_rows(visit: Visit, wanted: Wanted, *, images: int) -> Rows:
    """`statement`: every statement with each of the images of its sample; one without a label weighs nothing."""
    statements: Sequence[Statement] = visit.items
    return Rows(
        {
            "statement": [
                Row(
                    statement.statement,
                    item,
                    image=image,
                    weight=float(statement.label is not None),
                    label=0 if statement.label is None else wanted.classes[statement.label],
                )
                for item, statement in enumerate(statements)
                for image in range(images)
            ]
        }
    )


def about_one(visit: Visit, draw: Draw, wanted: Wanted) -> Rows:  # noqa: ARG001 - nothing is drawn
    """The rows of statements about one image."""
    return statement_rows(visit, wanted, images=1)


def about_two(visit: Visit, draw: Draw, wanted: Wanted) -> Rows:  # noqa: ARG001
    """The rows of statements about two images."""
    return statement_rows(visit, wanted, images=2)
