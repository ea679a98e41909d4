"""Rendered scenes as regions: what can be told of a picture can be told of its regions, and of them alone."""

import json

import numpy as np
import pytest

from shards.annotations.region_rows import parse_row
from shards.format.regions import Regions
from shards.scenes.command import task_files
from shards.scenes.lxmert import NUM_REGIONS, SPLITS, WIDTH, image_counts
from shards.scenes.world import IMAGE_SIZE, SHAPES, scene

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return dict(task_files("lxmert", num_images=NUM_IMAGES, seed=3))


@pytest.fixture(scope="module")
def seen(files: dict[str, bytes]) -> dict[str, Regions]:
    found = {}
    for split in SPLITS:
        for number, row in enumerate(files[f"{split}_obj{NUM_REGIONS}.tsv"].splitlines(keepends=True)):
            found[row.partition(b"\t")[0].decode()] = parse_row(row, f"{split} {number}")
    return found


def test_the_same_seed_gives_the_same_bytes(files: dict[str, bytes]):
    assert dict(task_files("lxmert", num_images=NUM_IMAGES, seed=3)) == files
    assert dict(task_files("lxmert", num_images=NUM_IMAGES, seed=4)) != files


def test_splits_share_no_image_and_every_question_is_about_one_of_its_own(files: dict[str, bytes]):
    counts, before = image_counts(NUM_IMAGES), set()
    for split in SPLITS:
        images = {row.partition(b"\t")[0].decode() for row in files[f"{split}_obj{NUM_REGIONS}.tsv"].splitlines()}
        asked = json.loads(files[f"{split}.json"])
        assert len(images) == counts[split]
        assert {one["img_id"] for one in asked} == images
        assert not images & before
        before |= images


def test_the_right_answer_scores_one_and_those_of_few_less(files: dict[str, bytes]):
    for split in SPLITS:
        for one in json.loads(files[f"{split}.json"]):
            assert max(one["label"].values()) == 1
            assert sorted(one["label"].values())[-2:-1] in ([], [0.3], [0.6], [0.9])
            assert set(one) == {"answer_type", "img_id", "label", "question_id", "question_type", "sent"}


def test_every_thing_has_a_region_where_it_stands_and_the_rest_is_background(seen: dict[str, Regions]):
    for number in range(NUM_IMAGES):
        shown = scene(3, number)
        regions = seen[f"scene_{shown.image_id}"]
        assert regions.features.shape == (NUM_REGIONS, WIDTH)
        assert regions.size.tolist() == [IMAGE_SIZE, IMAGE_SIZE]
        things = np.flatnonzero(regions.objects_id)
        assert sorted(SHAPES[regions.objects_id[place] - 1] for place in things) == sorted(
            thing.shape for thing in shown.things
        )
        for place in things:
            (thing,) = (t for t in shown.things if t.shape == SHAPES[regions.objects_id[place] - 1])
            left, top, right, bottom = regions.boxes[place]
            assert ((left + right) / 2, (top + bottom) / 2) == thing.center


def test_regions_of_one_shape_and_color_look_alike_and_others_do_not(seen: dict[str, Regions]):
    looks: dict[tuple[int, int], list[np.ndarray]] = {}
    for regions in seen.values():
        for place in np.flatnonzero(regions.objects_id):
            looks.setdefault((regions.objects_id[place], regions.attrs_id[place]), []).append(regions.features[place])
    means = {kind: np.mean(found, axis=0) for kind, found in looks.items()}
    for kind, found in looks.items():
        for features in found:
            nearest = min(means, key=lambda other: float(np.square(means[other] - features).sum()))
            assert nearest[0] == kind[0] or len(found) == 1
