"""What a recipe says about data: where the shards are, and how an epoch is cut into visits."""

from typing import Literal

from pydantic import Field

from shards.config_base import Section


class CacheConfig(Section):
    """Where each machine keeps copies of shards that lie behind a URL (docs/remote.md)."""

    directory: str | None = Field(default=None, min_length=1)
    """On a disk of the machine's own; runs may share it. Null is $DUOFLOW_CACHE or else ~/.cache/duoflow/shards."""
    bytes: int = Field(default=64 * 2**30, ge=1)
    """The most that its shards take together, those of other runs included."""
    ahead: int = Field(default=16, ge=0)
    """Shards that each rank fetches before they are needed."""
    retry_seconds: float = Field(default=300.0, gt=0.0)
    """How long a shard is asked for without a byte until the run ends; less than `engine.timeout_seconds`."""


class DataConfig(Section):
    """Finished shards, in directories or behind URLs (`s3://`, `gs://`, `hf://`, `https://`), and how they are read."""

    train: str | None = None
    """Directory or URL of the training shards, built with `duoflow shards build`."""
    val: str | None = None
    """Directory or URL of the validation shards; without one there is no validation and no `best` checkpoint."""
    testdev: str | None = None
    """Directory or URL of the testdev shards, for `duoflow evaluate`."""
    test: str | None = None
    """Directory or URL of the test shards, for `duoflow evaluate`."""
    challenge: str | None = None
    """Directory or URL of the challenge shards, for `duoflow evaluate`."""
    limit: int | None = Field(default=None, ge=1)
    """Images read of each split, the first ones; null reads all."""
    questions_per_visit: int = Field(default=16, ge=1)
    """K: an image with more questions is visited more than once in an epoch."""
    pages_per_visit: int | None = Field(default=None, ge=1)
    """Pages of a document that are read for a question in training: a run of them that shows the answer, cut elsewhere
    in each epoch; for page retrieval, the answer page and others that a hash draws. Null reads all that it is asked of,
    as evaluation does."""
    retrieved: str | None = None
    """JSON file with the pages of each question, the best first, as `duoflow evaluate` writes it for a retrieval run:
    evaluation reads the best `retrieved_pages` of a window alone. Null reads whole windows."""
    retrieved_pages: int = Field(default=3, ge=1)
    """Pages of a question that are read with `retrieved`."""
    shuffle_shards: int = Field(default=8, ge=1)
    """Shards that are mixed with each other: more mix better, fewer open fewer files."""
    image_size: int | None = Field(default=None, ge=1)
    """Side in pixels of the square images that the loader makes; null is the largest input of the vision towers."""
    augment: str | None = None
    """Changes of training pictures: RandAugment by timm's string, such as `rand-m9-mstd0.5`; or `turns`, `shifts` or
    `turns+shifts`; null changes none. docs/data.md says which pictures are left alone, and what becomes of questions
    about colours."""
    max_question_tokens: int = Field(default=32, ge=3)
    """Longer questions are cut, and counted."""
    max_answer_tokens: int = Field(default=12, ge=3)
    """Longer answers are cut."""
    workers: int = Field(default=2, ge=0)
    """Processes per rank that read and decode; 0 does it in the training process. Changes no result."""
    features: Literal["auto", "off", "require"] = "auto"
    """Tokens of frozen encoders that `duoflow features cache` has written, in the place of the images: `auto` uses what
    fits and goes on without the rest, `require` refuses to (docs/features.md)."""
    features_directory: str | None = Field(default=None, min_length=1)
    """Where they lie, in a directory for each split; null is `features/` beside the shards of a split."""
    cache: CacheConfig = CacheConfig()
