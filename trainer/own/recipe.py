"""The text of a recipe for data of one's own: every choice with its reason beside it."""

from collections.abc import Sequence

from trainer.config.yaml_text import format_value
from trainer.own.choices import MOST_VALIDATED, PATIENCE, Choice, Choices
from trainer.own.facts import Facts

_TEMPLATE = """\
# duoflow train {recipe}
#
# A first model for {rows}: {train_images:,} images to train on, {val_images:,} to validate on; no image is in both.
# Everything starts from random weights, so no network is needed. `duoflow train {recipe} --dry-run` says what a
# run would do; key=value behind it changes a value; docs/config.md has every key.
data:
  train: {train}
  val: {val}
  questions_per_visit: {questions_per_visit}  # {why_data_questions_per_visit}
  max_question_tokens: {max_question_tokens}  # {why_data_max_question_tokens}; longer ones are cut
  max_answer_tokens: {max_answer_tokens}
  workers: 1
model:
  # Two small vision encoders and the fusion between them, {grid} x {grid} patches each.
  second_stream: efficient_sam
  efficient_sam: {{variant: custom, image_size: {image_size}, patch_size: {patch_size}, width: 64, depth: 2, heads: 4, \
neck_width: 64}}
  fusion: {{layers: 2, heads: 4, dropout: 0.0}}
  scratch:
    image_size: {image_size}  # {why_model_scratch_image_size}
    patch_size: {patch_size}
    width: 96
    heads: 2  # narrower ones than 48 dimensions have a hard time with what is nearest or farthest
    vision_layers: 2
    text_layers: 2
    vocab_size: {vocab_size}  # {why_model_scratch_vocab_size}
  freeze: []  # nothing is pretrained
losses:
  answer: 1.0  # {why_losses_answer}
  itm: 1.0  # whether an answer fits: from this overlays draw where the model looked; 0.0 makes steps a third shorter
batch: {{visits: {visits}, micro_visits: {visits}}}  # {why_batch_visits}
optim: {{name: muon, lr: 2.0e-3, warmup_steps: {warmup_steps}}}
engine: {{policy: ds_configs/zero0.json}}
validate_every: {{epochs: {validate_every}, max_images: {max_validated}}}  # {why_validate_every_epochs}
early_stopping: {{metric: val/accuracy, patience: {patience}}}
logging: {{every_steps: 20}}
limits: {{epochs: {epochs}}}  # {why_limits_epochs}
#
# With BLIP's weights in place of random ones (2 GB from the hub at the first start; a GPU is advised), take out the
# sections `model`, `losses`, `batch` and `optim` above, and the # in front of these:
# model:
#   vision: Salesforce/blip-vqa-base
#   match: Salesforce/blip-itm-base-coco
#   answer: Salesforce/blip-vqa-base
#   second_stream: none
# batch: {{visits: {visits}, micro_visits: 1}}
# optim: {{lr: 1.0e-4, warmup_steps: {warmup_steps}}}
"""


def recipe_text(
    facts: Facts, chosen: Choices, reasons: Sequence[Choice], *, recipe: str, rows: str, train: str, val: str
) -> str:
    """YAML with comments, which loads as it is.

    Args:
        recipe: where it will lie.
        rows: the file with the questions.
        train: directory of the training shards.
        val: directory of the validation shards.
    """
    why = {f"why_{reason.key.replace('.', '_')}": reason.why for reason in reasons}
    return _TEMPLATE.format(
        **chosen._asdict(),
        **why,
        recipe=recipe,
        rows=rows,
        train=format_value(train),
        val=format_value(val),
        train_images=facts.train_images,
        val_images=facts.val_images,
        grid=chosen.image_size // chosen.patch_size,
        max_validated=MOST_VALIDATED,
        patience=PATIENCE,
    )
