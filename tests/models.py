"""Tiny models made from config, and batches of random tokens for them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from model.build import BuiltModel, build_model
from model.config import LossConfig, ModelConfig
from model.efficient_sam.decoder import MaskDecoderConfig
from model.efficient_sam.encoder import EfficientSamEncoderConfig
from model.efficient_sam.segmenter import Segmenter, SegmenterConfig
from model.efficient_sam.weights import save_segmenter
from model.towers.tokenizer import build_tokenizer
from shards.read.collate import IGNORED_LABEL, Batch, Block, Targets

IMAGE_SIZE = 32
WORDS = ("what color is the big circle", "is there a red square", "yes", "no", "red", "blue", "to the left of")
SCRATCH = {
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "width": 24,
    "heads": 3,
    "vision_layers": 2,
    "text_layers": 2,
    "vocab_size": 60,
}
EFFICIENT_SAM = {
    "variant": "custom",
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "width": 12,
    "depth": 1,
    "heads": 2,
    "neck_width": 10,
}
SEGMENTER = SegmenterConfig(
    encoder=EfficientSamEncoderConfig(image_size=IMAGE_SIZE, patch_size=8, width=12, depth=1, heads=2, neck_width=8),
    decoder=MaskDecoderConfig(heads=2, mlp_width=16, upscaling_widths=(4, 2), iou_width=8),
)
FUSION = {"layers": 2, "separate_layers": 1, "repeats": 1, "heads": 3, "dropout": 0.0}


def model_config(**changes: object) -> ModelConfig:
    """A model section of a few ten thousand parameters, nothing frozen."""
    base = {"scratch": SCRATCH, "efficient_sam": EFFICIENT_SAM, "fusion": FUSION, "freeze": ()}
    return ModelConfig.model_validate({**base, **changes})


def tiny_model(*, losses: LossConfig | None = None, seed: int = 0, **changes: object) -> BuiltModel:
    """That model, built."""
    return build_model(
        model_config(**changes),
        losses or LossConfig(),
        seed=seed,
        max_question_tokens=16,
        max_answer_tokens=6,
        scratch_tokenizer=lambda: build_tokenizer(WORDS, vocab_size=60),
    )


def tiny_blip(
    kind: type = BlipForQuestionAnswering, *, seed: int = 0
) -> BlipForQuestionAnswering | BlipForImageTextRetrieval:
    """A plain transformers model with larger weights than training starts from, so that differences show."""
    torch.manual_seed(seed)
    text = BlipTextConfig(
        vocab_size=60,
        hidden_size=24,
        encoder_hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=32,
        bos_token_id=5,
        eos_token_id=3,
        sep_token_id=3,
        pad_token_id=0,
        initializer_range=0.3,
    )
    vision = BlipVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=8,
        initializer_range=0.3,
    )
    return kind(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=24)).eval()


def tiny_checkpoints(directory: Path) -> dict[str, str]:
    """Directories as a hub would have them: BLIP's `itm` and `vqa`, and the file of a whole EfficientSAM, `sam`."""
    for name, kind in (("vqa", BlipForQuestionAnswering), ("itm", BlipForImageTextRetrieval)):
        tiny_blip(kind).save_pretrained(directory / name)
        build_tokenizer(WORDS, vocab_size=60).save_pretrained(directory / name)
    torch.manual_seed(3)
    save_segmenter(Segmenter(SEGMENTER), directory / "sam.safetensors")
    return {"vqa": str(directory / "vqa"), "itm": str(directory / "itm"), "sam": str(directory / "sam.safetensors")}


def tiny_t5(directory: Path, *, width: int = 24, scale: float = 2.0, seed: int = 0) -> str:
    """A directory with a T5 as a hub would have it, its tokenizer knowing WORDS; its weights large enough to show,
    at a `scale` of 1 as training would start from."""
    words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(word for text in WORDS for word in text.split())]
    words += [*"0123456789?.:\\", *(f"w{number}" for number in range(60))]
    words = words[:60]
    model = WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=60,
        d_model=width,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=3,
        dropout_rate=0.0,
        initializer_factor=scale,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(directory)
    return str(directory)


def tiny_captioner(directory: Path, *, seed: int = 0) -> str:
    """A directory with a BLIP captioner as a hub would have it, its tokenizer knowing WORDS."""
    tiny_blip(BlipForConditionalGeneration, seed=seed).save_pretrained(directory)
    build_tokenizer(WORDS, vocab_size=60).save_pretrained(directory)
    return str(directory)


def rows_of(block: Block, chosen: torch.Tensor) -> Block:
    """The chosen rows of a block, each with its one target, as a block whose images and items start at 0; (R,) bool."""
    image, item, mask = block.image[chosen], block.item[chosen], block.mask[chosen]
    image, item = image - image.min(), item - item.min()
    targets = block.targets and Targets(
        ids=block.targets.ids[chosen],
        labels=block.targets.labels[chosen],
        row=torch.arange(len(image)),
        weight=block.targets.weight[chosen],
        one_per_row=True,
    )
    return Block(
        ids=block.ids[chosen],
        mask=mask,
        image=image,
        item=item,
        weight=block.weight[chosen],
        labels=block.labels[chosen],
        targets=targets,
        rows_per_image=int(image.bincount().max()),
        rows_per_item=int(item.bincount().max()),
        tokens=int(mask.sum()),
    )


def random_batch(rows_per_image: tuple[int, ...], *, vocabulary: int = 40, seed: int = 0, length: int = 8) -> Batch:
    """A batch with so many questions of each image, each with one wrong pair; every text has its own length."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    questions = sum(rows_per_image)
    image = torch.repeat_interleave(torch.arange(len(rows_per_image)), torch.tensor(rows_per_image))
    mask = torch.arange(length) < integers(2, length + 1, questions)[:, None]
    ids = integers(7, vocabulary, questions, length) * mask
    pair_mask = mask.repeat_interleave(2, dim=0)
    answer = integers(7, vocabulary, questions, 2)
    longer = torch.rand(questions, generator=generator) < 0.5
    answer_ids = torch.cat([torch.full((questions, 1), 5), answer], dim=1)
    labels = torch.cat([answer, torch.full((questions, 1), 3)], dim=1)
    labels[~longer] = torch.stack(
        [answer[:, 0], torch.full((questions,), 3), torch.full((questions,), IGNORED_LABEL)], 1
    )[~longer]
    rows = torch.arange(questions)
    ask = Block(
        ids=ids,
        mask=mask,
        image=image,
        item=rows,
        weight=torch.ones(questions),
        labels=torch.zeros(questions, dtype=torch.int64),
        targets=Targets(ids=answer_ids, labels=labels, row=rows, weight=torch.ones(questions), one_per_row=True),
        rows_per_image=max(rows_per_image),
        rows_per_item=1,
        tokens=int(mask.sum()),
    )
    pixels = integers(0, 256, len(rows_per_image), 3, IMAGE_SIZE, IMAGE_SIZE).to(torch.uint8)
    match = Block(
        ids=integers(7, vocabulary, 2 * questions, length) * pair_mask,
        mask=pair_mask,
        image=image.repeat_interleave(2),
        item=rows.repeat_interleave(2),
        weight=torch.full((2 * questions,), 0.5),
        labels=torch.tensor([1, 0]).repeat(questions),
        targets=None,
        rows_per_image=2 * max(rows_per_image),
        rows_per_item=2,
        tokens=int(pair_mask.sum()),
    )
    return Batch(pixels, {"ask": ask, "match": match}, torch.tensor(1.0 / questions))
