"""Where a trained run looks, on rendered scenes that it has never seen: docs/images/heatmap.png and a table.

python -m benchmarks.heatmap_picture [RUN]      RUN from `make demo`: BLIP towers with a match and an answer part

Every question about one thing of a scene is read twice, alone and with the answer that the model gives. A scene has
each of its things in a quarter of its own; the table counts where the first point of the heatmap falls. The picture
shows color questions about scenes with two things of two colors: the first ones answered right on top, the first ones
answered wrong below.
"""

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.utils import logging as transformers_logging

from model.build import BuiltModel
from model.looking.heatmap import default_block, text_heatmaps
from model.looking.points import choose_points, to_pixels
from model.pnp.overlay import draw_overlay
from model.rows import Grouping
from shards.atomic import write_atomically
from shards.errors import ConfigError, UserError
from shards.read.collate import ask, pad
from shards.scenes.asked import Asked
from shards.scenes.gqa_format import questions
from shards.scenes.raster import paint
from shards.scenes.world import IMAGE_SIZE, Dice, Scene, Thing, scene
from trainer.build import assemble_model
from trainer.export.write import exported_model_config, load_exported_adapters, load_fusion
from trainer.run_directory import RunDirectory

PICTURE = Path("docs/images/heatmap.png")
TEXTS = ("question", "question and answer")
PLACES = ("the thing asked about", "another thing", "an empty quarter", "no point")
COLUMNS = 3
POINT_SEED = 0


class Looked(NamedTuple):
    """One question about one thing, and where the heat was."""

    scene: Scene
    asked: Asked
    thing: Thing
    answer: str
    """What the model says."""
    heatmaps: dict[str, NDArray[np.float32]]
    """Text that was read -> (g, g)."""

    @property
    def right(self) -> bool:
        return self.answer == self.asked.answer

    @property
    def between_colors(self) -> bool:
        """Whether it asks for a color where there are two."""
        asks = self.asked.kind.structural == "query" and self.asked.topic.endswith("_color")
        return asks and len({thing.color for thing in self.scene.things}) == 2


GROUPS: dict[str, Callable[[Looked], bool]] = {
    "one thing, any question": lambda one: len(one.scene.things) == 1,
    "two things, any question": lambda one: len(one.scene.things) == 2,
    "two colors, one asked for, answered right": lambda one: one.between_colors and one.right,
    "two colors, one asked for, answered wrong": lambda one: one.between_colors and not one.right,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=Path("demo/runs/demo_fusion"))
    parser.add_argument("--images", type=int, default=400, help="scenes to look at (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="of the scenes (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="PNG to write (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the table as JSON")
    options = parser.parse_args()
    try:
        built = load_run(options.run)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    looked = look(built, {number: scene(options.seed, number) for number in range(options.images)}, options.seed)
    counts = count_places(looked)
    print_table(counts)
    write_atomically(options.picture, draw_sheet(to_show(looked)))
    if options.json is not None:
        rows = [{"questions": group, "text": text, **places} for (group, text), places in counts.items()]
        write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
    return 0


def load_run(path: Path) -> BuiltModel:
    """The exported model of a run, in fp32 on the CPU.

    Raises:
        ConfigError, DataError: there is no such run, its export does not load, or it has no match or answer part.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    directory = RunDirectory(path)
    config = directory.read_config()
    if config is None:
        raise ConfigError(f"{path}: no run in it; run `make demo` first, or name another run directory")
    if not (config.losses.itm > 0 and config.losses.answer > 0):
        raise ConfigError(f"{path}: losses.itm and losses.answer must both be above 0, for heat and for answers")
    model = exported_model_config(config.model, directory.export)
    built = assemble_model(config, model=model, scratch_tokenizer=lambda: None)
    load_fusion(built.objective, directory.export)
    load_exported_adapters(built.objective, directory.export)
    built.objective.eval()
    return built


@torch.inference_mode()
def look(built: BuiltModel, scenes: dict[int, Scene], seed: int) -> list[Looked]:
    """Ask every question that names exactly one thing."""
    about = {number: about_one_thing(shown, Dice(seed, number)) for number, shown in scenes.items()}
    asked = [(scenes[number], *question) for number, found in about.items() for question in found]
    pixels = [torch.from_numpy(paint(shown)).permute(2, 0, 1) for shown in scenes.values()]
    codec, objective = built.answer_codec, built.objective
    texts_of = [[text.text for text, _ in found] for found in about.values()]
    batch = ask(pixels, texts_of, built.layouts["ask"])
    fused, block = objective.fuse(batch.shown), batch.blocks["ask"]
    tower = objective.tower("answer")
    answers = codec.decode(tower.generate(tower.read(fused, block).states, block.mask, codec, max_tokens=6).tolist())
    grouping = Grouping.of(block.image, num_images=len(fused), rows_per_image=block.rows_per_image)
    texts = [text.text for _, text, _ in asked]
    read = dict(zip(TEXTS, (built.match_codec.questions(texts), built.match_codec.pairs(texts, answers)), strict=True))
    match = objective.tower("match")
    layer = default_block(len(match.text_encoder.encoder.layer))
    heatmaps = {
        name: text_heatmaps(
            match, *pad(ids, built.match_codec.pad_id), fused, grouping, block=layer, prefix=objective.sight.prefix
        ).numpy()
        for name, (ids, _) in read.items()
    }
    return [
        Looked(*question, answer, {name: rows[row] for name, rows in heatmaps.items()})
        for row, (question, answer) in enumerate(zip(asked, answers, strict=True))
    ]


def about_one_thing(shown: Scene, dice: Dice) -> list[tuple[Asked, Thing]]:
    """The questions of a scene that mention one of its things, and no other."""
    things = {thing.object_id: thing for thing in shown.things}
    found = []
    for asked in questions(shown, dice).values():
        mentioned = {object_id for _, object_id in asked.mentions}
        if len(mentioned) == 1:
            found.append((asked, things[mentioned.pop()]))
    return found


def count_places(looked: list[Looked]) -> dict[tuple[str, str], Counter[str]]:
    """(group, text that was read) -> where the first point falls -> questions."""
    counts = {(group, text): Counter(dict.fromkeys(PLACES, 0)) for group in GROUPS for text in TEXTS}
    for one in looked:
        for text, heatmap in one.heatmaps.items():
            found = place(one, heatmap)
            for group, belongs in GROUPS.items():
                counts[group, text][found] += belongs(one)
    return counts


def place(one: Looked, heatmap: NDArray[np.float32]) -> str:
    """Where the first point of a heatmap falls."""
    points = to_pixels(choose_points(heatmap, seed=POINT_SEED)[:1], len(heatmap), (2, 2))  # a pixel is a quarter
    if not len(points):
        return PLACES[3]
    column, row = points[0].astype(int).tolist()
    there = [thing for thing in one.scene.things if (thing.column, thing.row) == (column, row)]
    return PLACES[0] if one.thing in there else PLACES[1] if there else PLACES[2]


def print_table(counts: dict[tuple[str, str], Counter[str]]) -> None:
    """Shares of the questions, a row for each group and each text."""
    print(f"{'questions':<44}{'text':<22}{'number':>6}" + "".join(f"{name:>24}" for name in PLACES))
    for (group, text), places in counts.items():
        shares = "".join(f"{100 * places[name] / max(places.total(), 1):>22.1f} %" for name in PLACES)
        print(f"{group:<44}{text:<22}{places.total():>6}{shares}")


def to_show(looked: list[Looked]) -> list[Looked]:
    """The first questions between two colors, one of a scene: a row answered right and a row answered wrong."""
    rows: dict[bool, dict[str, Looked]] = {True: {}, False: {}}
    for one in looked:
        if one.between_colors:
            rows[one.right].setdefault(one.scene.image_id, one)
    return [one for row in rows.values() for one in list(row.values())[:COLUMNS]]


def draw_sheet(looked: list[Looked]) -> bytes:
    """A PNG of the panels, row by row."""
    panels = [draw_panel(one) for one in looked]
    width, height = (max((panel.size[side] for panel in panels), default=1) for side in (0, 1))
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(panels) // COLUMNS) * height or 1), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % COLUMNS * width, number // COLUMNS * height))
    target = io.BytesIO()
    sheet.save(target, "PNG", optimize=True)
    return target.getvalue()


def draw_panel(one: Looked) -> Image.Image:
    """One question over its picture, read together with its answer."""
    heatmap = one.heatmaps[TEXTS[1]]
    points = to_pixels(choose_points(heatmap, seed=POINT_SEED), len(heatmap), (IMAGE_SIZE, IMAGE_SIZE))
    texts = {"question": one.asked.text, "answer": one.answer, "confidence": None}
    return draw_overlay(Image.fromarray(paint(one.scene)), heatmap, points.tolist(), None, **texts)


if __name__ == "__main__":
    sys.exit(main())
