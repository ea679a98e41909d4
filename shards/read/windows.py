"""Items that read some of the images of their sample: a question about a few pages of a document."""

from collections.abc import Iterator, Mapping, Sequence

from shards.tasks.seam import Row, Rows, Visit


def by_window(visit: Visit, rows: Rows) -> Iterator[tuple[Visit, Rows]]:
    """A visit as one for each window of images that its items read, in the order in which the first of them comes:
    what an item is not asked of must not stand in front of it."""
    windows: dict[tuple[int, ...], list[int]] = {}
    images_of: dict[int, set[int]] = {item: set() for item in range(len(visit.items))}
    for row in (row for block in rows.blocks.values() for row in block):
        images_of[row.item].update(row.all_images)
    for item, images in images_of.items():
        windows.setdefault(tuple(sorted(images)), []).append(item)
    missing = rows.missing
    for items in windows.values():
        number = {item: place for place, item in enumerate(items)}
        blocks = {
            name: [row._replace(item=number[row.item]) for row in block if row.item in number]
            for name, block in rows.blocks.items()
        }
        part = visit._replace(items=[visit.items[item] for item in items], numbers=[visit.numbers[i] for i in items])
        yield part, Rows(blocks, missing)
        missing = 0


def only_named(blocks: Mapping[str, Sequence[Row]]) -> tuple[dict[str, list[Row]], list[int]]:
    """Rows that count only the images that one of them names, in their order; and the places of those in the sample."""
    places = sorted({place for rows in blocks.values() for row in rows for place in row.all_images})
    number = {place: number for number, place in enumerate(places)}
    renamed = {
        name: [
            row._replace(image=number[row.all_images[0]], images=tuple(number[place] for place in row.images))
            for row in rows
        ]
        for name, rows in blocks.items()
    }
    return renamed, places
