"""What only a GPU can show of vision-language models: attention by blocks, and frozen weights in 4 bits."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from model.config import LossConfig, ModelConfig, VlmConfig
from model.vlm.build import BuiltVlm, build_vlm
from shards.tasks import TASKS
from tests.unit.model.vlm.test_families import VISITS, gradients, parts_of
from tests.vlm import write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]

CUDA = torch.device("cuda")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "smolvlm"])
def test_attention_by_blocks_gives_the_gradients_of_rows(family: str) -> None:
    parts = parts_of(family)
    parts.rows.to(CUDA)
    parts.rows.place_frozen(CUDA, torch.float32)
    rows = parts.batch(VISITS, "rows").to(CUDA)
    expected_sums, expected = gradients(parts.rows, rows)
    parts.shared.place_frozen(CUDA, torch.float32)
    assert parts.shared.attends_by_blocks
    sums, found = gradients(parts.shared, parts.batch(VISITS, "shared").to(CUDA))
    torch.testing.assert_close(sums, expected_sums, rtol=1e-3, atol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-2, atol=1e-4 * float(gradient.abs().max()) + 1e-6)


def built(directory: Path) -> BuiltVlm:
    limits = {"seed": 0, "max_question_tokens": 32, "max_answer_tokens": 8}
    model, config = ModelConfig(vlm=str(directory)), VlmConfig(quantize="nf4")
    return build_vlm(model, config, LossConfig(itm=0.0), task=TASKS["gqa"], **limits)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_adapters_of_weights_in_four_bits_get_gradients(tmp_path: Path) -> None:
    made = built(write_checkpoint("qwen2_5_vl", tmp_path))
    made.objective.to(CUDA, torch.bfloat16)
    made.objective.place_frozen(CUDA, torch.bfloat16)
    settled = made.settled(CUDA, bool)
    given = {"loss_scale": 1.0, "eyes": settled.collation.eyes(None, None), "blanks": 1, "answering": True}
    batch = settled.collation.collate(VISITS, **given).batch.to(CUDA)
    for leaf in made.objective.parameters():
        torch.nn.init.normal_(leaf, std=0.05)
    made.objective(batch).loss.backward()
    assert all(leaf.grad.isfinite().all() and leaf.grad.any() for leaf in made.objective.parameters())
    assert len(made.objective.evaluate(batch).predictions["answer"]) == 5
