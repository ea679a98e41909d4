"""Generated weights of the architectures that the GQA recipes name, so small that a recipe runs within a minute.

python -m benchmarks.tiny_weights OUT [--seed S] [--texts F ...]

Writes BLIP's matching, VQA and captioning models and T5 as `save_pretrained` does, each with a tokenizer that knows the
words of the texts, and a whole EfficientSAM. Nothing in them was trained; the same arguments give the same weights.
"""

import argparse
import hashlib
import json
import os
import shutil
import string
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration, T5Tokenizer
from transformers.utils import logging as transformers_logging

from model.config import ScratchConfig
from model.efficient_sam.decoder import MaskDecoderConfig
from model.efficient_sam.encoder import EfficientSamEncoderConfig
from model.efficient_sam.segmenter import Segmenter, SegmenterConfig
from model.efficient_sam.weights import save_segmenter
from model.pnp.captions import CaptionConfig
from model.source import initialize_blip, initialize_efficient_sam, scratch_blip_config
from model.towers.tokenizer import build_tokenizer
from model.untrained import initialize_untrained
from shards.errors import UserError
from shards.scenes.gqa_format import questions
from shards.scenes.world import Dice, scene

WIDTH = 48
"""Of every tower that reads image tokens: BLIP's and T5's fit each other."""
BLIP_SIZES = ScratchConfig(image_size=64, patch_size=8, width=WIDTH, heads=4, vision_layers=2, text_layers=2)
SEGMENTER_SIZES = SegmenterConfig(
    encoder=EfficientSamEncoderConfig(image_size=64, patch_size=8, width=32, depth=2, heads=2, neck_width=32),
    decoder=MaskDecoderConfig(heads=4, mlp_width=64, upscaling_widths=(16, 8), iou_width=32),
)
T5_LAYERS, T5_HEADS = 2, 4
BLIP_MODELS = {
    "blip_itm": "BlipForImageTextRetrieval",
    "blip_vqa": "BlipForQuestionAnswering",
    "blip_captioner": "BlipForConditionalGeneration",
}
VOCABULARY = 400
SCENES = 200
"""Their questions and answers are the texts when none are given."""
MANIFEST = "made_with.json"
RECIPE, RECIPE_HOME = "recipes/gqa_blip_tiny.yaml", Path("weights/tiny")
"""The recipe that reads these weights, and where it looks for them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="OUT", type=Path, help=f"directory to write, such as {RECIPE_HOME}")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument("--texts", metavar="F", nargs="+", type=Path, help="text files with the words to know")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    try:
        texts = list(scene_texts() if options.texts is None else read_texts(options.texts))
        written = write_weights(options.out, texts, seed=options.seed)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: seed {options.seed}: {'written' if written else 'already there, nothing to do'}")
    for path in sorted(options.out.iterdir()):
        print(f"  {path.name:<28}{describe(path)}")
    print("\nnext:")
    for command in next_commands(options.out):
        print(f"  {command}")
    return 0


def scene_texts() -> Iterator[str]:
    """Questions and answers of scenes as `duoflow scenes` renders them."""
    for number in range(SCENES):
        for asked in questions(scene(0, number), Dice(0, number)).values():
            yield asked.text
            yield asked.answer


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """The lines of text files.

    Raises:
        UserError: a file cannot be read.
    """
    for file in files:
        try:
            yield from file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--texts {file}: cannot be read ({error}); expected lines of UTF-8 text") from None


def write_weights(out: Path, texts: Sequence[str], *, seed: int) -> bool:
    """Write all models, unless they are there; the directory appears when it is complete.

    Returns:
        Whether anything was written.

    Raises:
        UserError: `out` holds something else, or cannot be written.
    """
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    manifest = {"seed": seed, "texts_sha256": digest, "transformers": transformers.__version__}
    if out.exists():
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        elif _read_manifest(out) == manifest:
            return False
        else:
            raise UserError(f"{out}: holds something else; remove it, or give another OUT")
    staged = out.absolute().with_name(f".{out.name}.{os.getpid()}")
    try:
        staged.mkdir(parents=True)
        _write_models(staged, texts, seed)
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        os.replace(staged, out)
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return True


def _write_models(out: Path, texts: Sequence[str], seed: int) -> None:
    # Every character that a question may have: a word of other texts is then spelt rather than unknown.
    known = [*texts, CaptionConfig().prompt, " ".join(string.ascii_lowercase + string.digits + string.punctuation)]
    tokenizer = build_tokenizer(known, vocab_size=VOCABULARY)
    for name, architecture in BLIP_MODELS.items():
        torch.manual_seed(seed)  # each model depends on the seed and not on those before it
        model = getattr(transformers, architecture)(scratch_blip_config(BLIP_SIZES, tokenizer))
        initialize_blip(model)
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
    tokenizer = build_t5_tokenizer(known)
    torch.manual_seed(seed)
    _tiny_t5(tokenizer).save_pretrained(out / "t5")
    tokenizer.save_pretrained(out / "t5")
    torch.manual_seed(seed)
    segmenter = Segmenter(SEGMENTER_SIZES)
    initialize_untrained(segmenter)
    initialize_efficient_sam(segmenter.image_encoder)
    save_segmenter(segmenter, out / "efficient_sam.safetensors")


def build_t5_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer of T5's own kind: the words of the texts as whole pieces, anything else in characters."""
    words = Counter(word.strip(string.punctuation) for text in texts for word in text.lower().split())
    by_frequency = sorted(filter(None, words), key=lambda word: (-words[word], word))
    characters = sorted({character for text in texts for character in text.lower() if not character.isspace()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in by_frequency[:VOCABULARY]]
    pieces += [(character, -8.0) for character in characters]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _tiny_t5(tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=WIDTH // T5_HEADS,
        d_ff=2 * WIDTH,
        num_layers=T5_LAYERS,
        num_heads=T5_HEADS,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


def _read_manifest(out: Path) -> object:
    try:
        return json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def describe(path: Path) -> str:
    """What lies there, in a line."""
    if not path.is_dir():
        return f"{path.stat().st_size:,} bytes"
    architecture = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    return f"{architecture}, {sum(file.stat().st_size for file in path.iterdir()):,} bytes"


def next_commands(out: Path) -> list[str]:
    """What to do with the weights: a check, a training, and the same with LoRA and with T5."""
    paths = {"vision": "blip_itm", "match": "blip_itm", "answer": "blip_vqa"}
    moved = [f"model.{tower}={_local(out / name)}" for tower, name in paths.items()]
    moved.append(f"model.efficient_sam.checkpoint={out / 'efficient_sam.safetensors'}")
    if out.absolute() == RECIPE_HOME.absolute():
        moved = []
    rank = "model.lora.answer.rank=4"
    lora = ["run.name=tiny_lora", rank, "model.lora.answer.targets=[query,value]"]
    t5 = ["run.name=tiny_t5", rank, "model.lora.answer.targets=[q,v]", f"model.answer={_local(out / 't5')}"]
    train = ["duoflow train", RECIPE, *moved]
    return [
        " ".join(["duoflow doctor", RECIPE, *moved]),
        " ".join(train),
        " ".join([*train, *lora]),
        " ".join([*train, *t5]),
    ]


def _local(path: Path) -> str:
    """A path as a reference that cannot be taken for a hub id."""
    return str(path) if path.is_absolute() else f"./{path}"


if __name__ == "__main__":
    sys.exit(main())
