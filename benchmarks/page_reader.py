"""A small vision-language model that has learnt to read drawn pages aloud, as `save_pretrained` writes it.

Adapters are trained on a model that can do something already: this one is shown pages and says their lines. At first it
is one page, from the top to the bottom, then in an order that is drawn anew each time, then some lines of up to eight
pages. It is asked nothing. `python -m benchmarks.page_reader OUT` makes one in plain PyTorch, in some 15 minutes on one
core; its pages are those of no document of `duoflow scenes` with the same seed.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from timm.optim import Muon
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from shards.scenes.documents import KEYS, LINES, MAX_PAGES, PAGE_SIZE, VALUES, draw

IMAGE, USER, END, PAD = "<image>", "<|user|>", "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|>{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|end|>{% endfor %}"
)
INSTRUCTION = "Read"
WORDS = ("What", "is", "the", INSTRUCTION)
SEEN, PATCH = PAGE_SIZE, PAGE_SIZE // LINES
"""Sides in pixels of a page, and of a patch: as high as a line with what is between lines, and two letters wide."""
WIDTH, HEADS = 128, 4
VISION_LAYERS, TEXT_LAYERS = 3, 4
PAPER, CONTRAST = 0.98, 0.45
"""Mean and standard deviation that pixels are normalised with: paper is 0, and ink is -2."""
STEPS, PAGES_PER_STEP, WARMUP, RATE = 3000, 16, 100, 2e-3
IN_ORDER, ALONE = 0.08, 0.4
"""The first parts of the steps in which lines are said in their order, and in which pages are single."""
MAX_SAID = 24
"""Lines of a document."""
CONTEXT = 1024


def write_page_reader(directory: Path, *, seed: int, steps: int = STEPS) -> float:
    """Train a reader and write it with its processor.

    Returns:
        The mean loss of a token over the last steps.
    """
    torch.manual_seed(seed)
    processor = make_processor()
    model = make_model(processor.tokenizer)
    drawn = documents(
        np.random.default_rng(seed), processor, in_order=round(IN_ORDER * steps), alone=round(ALONE * steps)
    )
    loss = teach(model, processor, drawn, steps)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return loss


def make_processor() -> LlavaProcessor:
    """Its words are keys and single digits; any other text is spelt."""
    characters = [chr(code) for code in range(33, 127)]
    entries = [*characters, *(f"##{character}" for character in characters), *WORDS, *KEYS, "[UNK]"]
    words = Tokenizer(models.WordPiece({entry: number for number, entry in enumerate(entries)}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=PAD)
    tokenizer.add_tokens([AddedToken(text, special=True) for text in (IMAGE, USER)], special_tokens=True)
    sides = {"height": SEEN, "width": SEEN}
    photos = CLIPImageProcessor(
        do_resize=False, crop_size=sides, image_mean=[PAPER] * 3, image_std=[CONTRAST] * 3, size=sides
    )
    return LlavaProcessor(
        photos, tokenizer, patch_size=PATCH, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """An untrained LLaVA over SigLIP's tower and Llama, of which a narrow one is not silent at first
    (docs/from_scratch.md)."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_attention_heads": HEADS}
    config = LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": SEEN, "patch_size": PATCH, **sizes}
        | {"num_hidden_layers": VISION_LAYERS, "vision_use_head": False},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **sizes, "num_hidden_layers": TEXT_LAYERS}
        | {
            "max_position_embeddings": CONTEXT,
            "initializer_range": WIDTH**-0.5,
            "eos_token_id": tokenizer.eos_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("patch_embedding.weight", "linear_1.weight", "linear_2.weight")):
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif name.endswith(("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.3)
            elif name.endswith("position_embedding.weight"):
                parameter.copy_(waves(SEEN // PATCH, WIDTH) * 0.5)
    return model


def waves(side: int, width: int) -> Tensor:
    """(side * side, width): sines and cosines of row and column."""
    frequencies = math.pi * torch.arange(1, width // 4 + 1) / (width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1)], dim=1)


class Shown(NamedTuple):
    """A step: documents of as many pages each, and lines of them."""

    pixels: Tensor
    """(B * P, 3, SEEN, SEEN)"""
    num_pages: int
    """P"""
    said: Tensor
    """(B, L) int64: key and digits of L / 4 lines each"""


def documents(random: np.random.Generator, processor: LlavaProcessor, *, in_order: int, alone: int) -> Iterator[Shown]:
    """Endless steps, of which the first `alone` have documents of one page, and of those the first `in_order` say their
    lines from the top to the bottom."""
    for step in count():
        num_pages = 1 if step < alone else int(random.integers(1, MAX_PAGES + 1))
        num_lines = LINES * num_pages
        shown, said = [], []
        for _ in range(max(1, PAGES_PER_STEP // num_pages)):
            keys, values = (random.choice(drawn, num_lines, replace=False) for drawn in (KEYS, VALUES))
            lines = [(str(key), str(value)) for key, value in zip(keys, values, strict=True)]
            shown += [draw(tuple(lines[first : first + LINES])) for first in range(0, num_lines, LINES)]
            order = range(num_lines) if step < in_order else random.permutation(num_lines)[:MAX_SAID]
            said.append(" ".join(" ".join(lines[place]) for place in order))
        pixels = processor.image_processor(shown, return_tensors="pt", input_data_format="channels_last")
        ids = processor.tokenizer(said, return_tensors="pt")["input_ids"]
        yield Shown(pixels["pixel_values"], num_pages, ids)


def teach(model: LlavaForConditionalGeneration, processor: LlavaProcessor, given: Iterator[Shown], steps: int) -> float:
    """Next-token training on what is said of pages."""
    tokenizer = processor.tokenizer
    end = torch.tensor([tokenizer.eos_token_id])
    rough = ("embed", "lm_head", "patch_embedding")
    named = list(model.named_parameters())
    groups = [
        {"params": [value for name, value in named if not any(part in name for part in rough)]},
        {"params": [value for name, value in named if any(part in name for part in rough)], "use_fallback": True},
    ]
    optimizer = Muon(groups, lr=RATE, nesterov=True, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1.0) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    recent, started = 0.0, time.monotonic()
    for step in range(1, steps + 1):
        pixels, num_pages, said = next(given)
        tokens = [USER, *[IMAGE] * (num_pages * (SEEN // PATCH) ** 2), INSTRUCTION, END]
        prompt = torch.tensor(tokenizer.convert_tokens_to_ids(tokens))
        ids = torch.cat([prompt.expand(len(said), -1), said, end.expand(len(said), 1)], dim=1)
        logits = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        predicted = logits[:, len(prompt) - 1 : -1]
        loss = nn.functional.cross_entropy(predicted.flatten(0, 1), ids[:, len(prompt) :].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += (loss.item() - recent) / min(step, 50)
        if step % 50 == 0:
            hits = predicted.argmax(-1) == ids[:, len(prompt) :]
            right = hits[:, :-1].unflatten(1, (-1, 4))[..., 1:].float().mean()
            elapsed = time.monotonic() - started
            said = f"{num_pages} page(s), digits {right:.3f} right"
            print(f"step {step}: loss {recent:.3f}, {said}, {elapsed:.0f} s", flush=True)
    return recent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of the checkpoint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    loss = write_page_reader(options.out, seed=options.seed, steps=options.steps)
    print(f"{options.out}: {loss:.3f} a token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
