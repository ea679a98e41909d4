"""What the answer benchmark runs: untrained models of official sizes that answer, and made-up questions.

With random weights, whatever a model would have learnt to do is settled instead: answers stop at MOST_ANSWER_TOKENS,
since untrained towers hardly ever write an end token, and captions run to their longest, all of them different, so that
none is written again. A trained captioner ends most captions earlier, but those of a question are written side by side
and take the steps of the longest.

Words are drawn from a list of made-up ones, each a single token in both vocabularies. BERT and T5 split few of the
words that captions are made of, so a context of 5 captions has about as many tokens, 100, as one of real captions that
run to their longest.
"""

from dataclasses import asdict, dataclass, field
from itertools import islice, product
from string import ascii_lowercase
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    BlipForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from model.build import BuiltModel, build_model, build_parts
from model.config import EfficientSamConfig, LossConfig, ModelConfig, PnpConfig, ScratchConfig
from model.efficient_sam.segmenter import Segmenter, SegmenterConfig
from model.fusion_objective import FusionObjective, Towers
from model.parts import sum_names
from model.pnp.captions import Captioner
from model.pnp.fid import FidReader
from model.references import SCRATCH
from model.towers.tokenizer import build_tokenizer
from shards.tasks import TASKS
from trainer.bench.workload import ANSWER_TOKENS, GQA_QUESTION_TOKENS

MOST_ANSWER_TOKENS = max(ANSWER_TOKENS) + 1
"""Of a generated answer, its end token included."""

FEW_CAPTIONS = 10
"""Written while the stages warm up."""

_WORD_LENGTH = 4
_MARKS_OF_A_QUESTION = 3
"""The first token, the question mark and [SEP]: tokens of a question that are no words."""


@dataclass(frozen=True, kw_only=True)
class ReaderSizes:
    """Sizes of the T5 that reads captions; the defaults are T5-base's."""

    width: int = 768
    layers: int = 12
    """Of the encoder, and of the decoder."""
    heads: int = 12
    ffn_width: int = 3072
    vocab_size: int = 32_128


@dataclass(frozen=True, kw_only=True)
class AnswerSizes:
    """Sizes of all that answers; by default BLIP-base's at 384 pixels, EfficientSAM's tiny variant's and T5-base's."""

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            scratch=ScratchConfig(
                image_size=384,
                patch_size=16,
                width=768,
                heads=12,
                vision_layers=12,
                text_layers=12,
                vocab_size=30_524,
            ),
            efficient_sam=EfficientSamConfig(variant="vitt"),
        )
    )
    """The trained model, with DIFNet's fusion; its matching and answering side share a text encoder. The captioner has
    the sizes of its towers."""
    pnp: PnpConfig = field(default_factory=lambda: PnpConfig(max_answer_tokens=1 + MOST_ANSWER_TOKENS))
    """How many captions, and how they are read. The start token counts as one of T5's answer."""
    reader: ReaderSizes = field(default_factory=ReaderSizes)

    def as_json(self) -> dict[str, Any]:
        """By part, what a recipe says of it, and the reader's sizes."""
        return {"model": self.model.model_dump(), "pnp": self.pnp.model_dump(), "reader": asdict(self.reader)}


class FusedAlready(FusionObjective):
    """Answers from tokens that another objective has fused: what is left of the direct way once they are there."""

    fused: Tensor
    """(1, N, D), set before each answer."""

    def fuse(self, pixels: Tensor) -> Tensor:  # noqa: ARG002 - they have been looked at
        return self.fused


class Models(NamedTuple):
    """Everything that answers."""

    sizes: AnswerSizes
    built: BuiltModel
    from_fused: FusedAlready
    """With the towers of `built`."""
    segmenter: Segmenter
    """Around the second stream's own image encoder."""
    captioner: Captioner
    brief_captioner: Captioner
    """The same model, with FEW_CAPTIONS at the most."""
    reader: FidReader
    reader_tokenizer: PreTrainedTokenizerBase

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """As a run is answered from: the mask decoder stays in fp32, and T5 keeps out of fp16."""
        self.segmenter.to(device)
        self.built.objective.to(device=device, dtype=dtype)
        self.built.objective.place_frozen(device, dtype)
        self.captioner.place(device, dtype)
        self.reader.place(device)


def build_models(sizes: AnswerSizes, *, seed: int) -> Models:
    """The models on the CPU in fp32, in evaluation mode, with weights that depend on the seed alone."""
    built = build_model(
        sizes.model,
        LossConfig(),
        seed=seed,
        max_question_tokens=max(GQA_QUESTION_TOKENS),
        max_answer_tokens=MOST_ANSWER_TOKENS,
        scratch_tokenizer=lambda: bert_tokenizer(sizes.model.scratch.vocab_size, sizes.pnp.captions.prompt),
    )
    objective, captions = built.objective.eval(), sizes.pnp.captions
    few = captions.model_copy(update={"num_captions": min(FEW_CAPTIONS, captions.num_captions)})
    torch.manual_seed(seed)
    segmenter = Segmenter(SegmenterConfig(), image_encoder=objective.tower("second_stream").encoder)
    captioner = BlipForConditionalGeneration(built.source.blip_config(SCRATCH)), built.source.tokenizer(SCRATCH)
    tokenizer = t5_tokenizer(sizes.reader.vocab_size)
    return Models(
        sizes,
        built,
        _from_fused(built),
        segmenter.eval().requires_grad_(False),
        Captioner(*captioner, captions),
        Captioner(*captioner, few),
        FidReader(T5ForConditionalGeneration(t5_config(sizes.reader)), tokenizer),
        tokenizer,
    )


def _from_fused(built: BuiltModel) -> FusedAlready:
    task = TASKS["gqa"]
    towers = Towers(built.objective.sight, None, None, built.objective.tower("answer"))
    answering = FusedAlready(
        nn.Identity(),
        towers,
        freeze=("vision", "answer"),
        parts=build_parts(
            task,
            LossConfig(itm=0.0),
            towers,
            answer_codec=built.answer_codec,
            max_answer_tokens=MOST_ANSWER_TOKENS,
        ),
        sum_names=sum_names(task.reads),
    )
    return answering.eval()


def t5_config(sizes: ReaderSizes) -> T5Config:
    """T5 of the first version, as UnifiedQA has it; T5's own special ids, which `t5_tokenizer` has too."""
    return T5Config(
        vocab_size=sizes.vocab_size,
        d_model=sizes.width,
        d_kv=sizes.width // sizes.heads,
        d_ff=sizes.ffn_width,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        decoder_start_token_id=0,
    )


def made_up_words(count: int) -> list[str]:
    """So many different words of four letters."""
    return ["".join(letters) for letters in islice(product(ascii_lowercase, repeat=_WORD_LENGTH), count)]


def bert_tokenizer(vocab_size: int, prompt: str) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of `vocab_size` entries, the words of the captioner's prompt among them."""
    frequent = [f"{prompt} ?"] * 2  # the words seen most often get the places
    return build_tokenizer([*frequent, *made_up_words(vocab_size)], vocab_size=vocab_size)


def t5_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """A tokenizer of `vocab_size` whole words and marks, where T5's has pieces of words."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), ".", "?", "\\", "n", *made_up_words(vocab_size)][:vocab_size]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def draw_questions(tokenizer: PreTrainedTokenizerBase, count: int, generator: torch.Generator) -> list[str]:
    """Questions of random words, with as many tokens as GQA's have."""
    weights = torch.tensor(list(GQA_QUESTION_TOKENS.values()), dtype=torch.float64)
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator).tolist()
    lengths = [list(GQA_QUESTION_TOKENS)[place] - _MARKS_OF_A_QUESTION for place in drawn]
    vocabulary = tokenizer.get_vocab()
    words = [word for word in made_up_words(len(vocabulary)) if word in vocabulary]
    picked = [torch.randint(len(words), (length,), generator=generator).tolist() for length in lengths]
    return [" ".join([*(words[place] for place in places), "?"]) for places in picked]
