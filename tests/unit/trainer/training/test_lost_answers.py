"""A run says at its start, and a dry run too, which answers can never be matched."""

from pathlib import Path

from tests.runs import write_recipe, write_shards
from trainer.commands.dry_run import dry_run
from trainer.config import load_config


def test_a_dry_run_counts_answers_that_are_cut_and_says_nothing_where_none_are(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", write_shards(tmp_path))
    assert "answers lost" not in dry_run(load_config(recipe, ["model.scratch.vocab_size=1000"]))
    told = dry_run(load_config(recipe, ["model.scratch.vocab_size=16", "data.max_answer_tokens=3"]))
    (line,) = (line for line in told.splitlines() if line.startswith("answers lost"))
    assert "can never be matched" in line
    assert "raise data.max_answer_tokens" in line
