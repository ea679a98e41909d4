"""What a recipe says about the model: which towers, which fusion, what is frozen, and which losses train it."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from model.references import EFFICIENT_SAM, SCRATCH, read_reference
from shards.config_base import Section
from shards.tasks import TaskData

Tower = Literal["vision", "second_stream", "match", "answer"]
"""What can be frozen. The fusion encoder never is: it is what a run trains."""

HeadKind = Literal["lxmert", "albef"]
"""The form of a head that names classes."""

ALL_LINEAR = "all-linear"
"""In the place of names of layers: every linear layer of a side, as PEFT says it."""

TextStart = Literal["cls", "enc"]
"""What stands first in the text that BLIP's encoders read: BERT's [CLS], or [ENC], as BLIP was trained."""

ImageTokens = Literal["fused", "plain"]
"""What the matching tower reads to look: the trained fusion's tokens, or those of the first vision tower alone."""


class EfficientSamConfig(Section):
    """The second vision tower. The sizes are for `variant: custom` alone; the official variants have fixed ones.

    With `custom`, a checkpoint that DuoFlow exported brings its sizes along: then none is given.
    """

    checkpoint: str | None = None
    """Official weights (`efficient_sam_vitt.pt`, `efficient_sam_vits.pt`) or an export; null starts from scratch."""
    variant: Literal["vitt", "vits", "custom"] = "vitt"
    """The official tiny or small encoder, or one of the sizes below."""
    image_size: int | None = Field(default=None, ge=1)
    """Side of the input in pixels (custom only)."""
    patch_size: int | None = Field(default=None, ge=1)
    """Side of a patch in pixels (custom only)."""
    width: int | None = Field(default=None, ge=1)
    """Width of the transformer (custom only)."""
    depth: int | None = Field(default=None, ge=1)
    """Layers of the transformer (custom only)."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads (custom only)."""
    neck_width: int | None = Field(default=None, ge=1)
    """Channels of the feature map behind the neck (custom only)."""


class FusionConfig(Section):
    """The fusion encoder between the two vision towers: the part that a run trains."""

    name: Literal["difnet", "concatenation", "sum"] = "difnet"
    """DIFNet's encoder (Wu et al. 2022); for comparison, both streams side by side before the same layers, or the bare
    sum of both."""
    width: int | None = Field(default=None, ge=1)
    """Width inside the encoder; null is the width of the first stream."""
    layers: int = Field(default=3, ge=1)
    """N: layers of the encoder."""
    separate_layers: int = Field(default=1, ge=0)
    """Lf: the first of them, which the streams pass apart before they are added; less than `layers`. With 0 all layers
    follow the sum. DIFNet's alone, as is T."""
    repeats: int = Field(default=2, ge=1)
    """T: how often a stream passes each of its separate layers, with the same weights."""
    heads: int = Field(default=8, ge=1)
    """Attention heads; they divide the width."""
    ffn_width: int | None = Field(default=None, ge=1)
    """Width of the feed-forward part; null is 4 x width."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of activations dropped while training."""


class ScratchConfig(Section):
    """Sizes of the towers that are written `scratch`: small, untrained, for tests, demos and machines without a hub."""

    image_size: int = Field(default=64, ge=1)
    """Side of the input in pixels."""
    patch_size: int = Field(default=8, ge=1)
    """Side of a patch in pixels; divides `image_size`."""
    width: int = Field(default=128, ge=1)
    """Width of the vision transformer, the text encoders and the decoder (BLIP's decoder wants one for all)."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of all of them; divides `width`."""
    vision_layers: int = Field(default=3, ge=1)
    """Layers of the vision transformer."""
    text_layers: int = Field(default=2, ge=1)
    """Layers of each text encoder, and of the answer decoder."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of activations dropped while training."""
    vocab_size: int = Field(default=1000, ge=16)
    """Most words that the tokenizer takes from the training questions and answers."""


class LoraConfig(Section):
    """LoRA adapters (Hu et al. 2021) in a frozen part, in PEFT's terms."""

    rank: int = Field(default=0, ge=0)
    """Width of each adapter; 0 trains none."""
    alpha: float = Field(default=16.0, gt=0.0)
    """An adapter's output is scaled by `alpha` / `rank`."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of an adapter's inputs dropped while training."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get one, as their paths end: `query`, `crossattention.self.value`; T5: `q`."""


class LoraParts(Section):
    """Which frozen towers are adapted."""

    match: LoraConfig = LoraConfig()
    """BLIP's matching text encoder."""
    answer: LoraConfig = LoraConfig()
    """BLIP's question encoder and answer decoder, or T5."""


class VlmLoraConfig(LoraConfig):
    """LoRA adapters in one side of a vision-language model."""

    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Names of the linear layers that get one, as their paths end, such as `q_proj`; or `all-linear`."""


class LanguageLoraConfig(VlmLoraConfig):
    """Those in its language model, which a recipe that says nothing trains."""

    rank: int = Field(default=16, ge=0)
    """Width of each adapter; 0 trains none."""
    alpha: float = Field(default=32.0, gt=0.0)
    """An adapter's output is scaled by `alpha` / `rank`."""


class VlmConfig(Section):
    """How a vision-language model (`model.vlm`) is asked and trained; of no effect without one."""

    questions: Literal["shared", "rows", "conversation"] = "shared"
    """How the questions of a visit stand behind its images: `shared` computes the images once and lets no question see
    another; `rows` computes them again for each question; `conversation` joins the questions to one conversation, in
    which later ones see earlier ones with their answers (LLaVA-1.5)."""
    system: str | None = None
    """Text of the system turn; null has none, or what the chat template puts there itself."""
    quantize: Literal["nf4"] | None = None
    """Keep the frozen linear layers in 4 bits (QLoRA, Dettmers et al. 2023): on CUDA, with the extra `[qlora]`; null
    keeps them in the precision of the run."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of images and one question with its answer; null is the context of the model."""
    language: LanguageLoraConfig = LanguageLoraConfig()
    """Adapters of the language model."""
    vision: VlmLoraConfig = VlmLoraConfig()
    """Adapters of the vision tower, and of what leads from it to the language model."""


class ReaderConfig(Section):
    """How a reader of pages (`model.reader`) reads; of no effect without one."""

    page_tokens: int = Field(default=10, ge=1)
    """Tokens in front of each page that stand for it, once it is read."""
    max_pages: int = Field(default=20, ge=1)
    """Pages of the longest window: the page head has a place for each."""
    max_page_tokens: int = Field(default=512, ge=16)
    """Tokens of a page with the question and the page tokens; further words are cut."""
    boxes: bool = True
    """Whether a token is told where its word stands on the page."""


class RetrievalLora(Section):
    """Which frozen towers of page retrieval are adapted."""

    text: LoraConfig = LoraConfig()
    """The text tower; its layers are called `q_proj`, `v_proj`, `fc1`, ..."""
    vision: LoraConfig = LoraConfig()
    """The vision tower, whose layers have the same names."""


class RetrievalConfig(Section):
    """How a CLIP or SigLIP (`model.retrieval`) learns to find pages; of no effect without one."""

    loss: Literal["contrastive", "triplet"] = "contrastive"
    """Symmetric InfoNCE between the questions of a visit and the pages of their document; or a triplet loss, the mean
    over the wrong pages."""
    margin: float = Field(default=0.3, gt=0.0, le=2.0)
    """By which the right page has to be more similar than a wrong one, as a cosine (triplet only)."""
    freeze: tuple[Literal["text", "vision"], ...] = ()
    """Towers that are not trained, but for their LoRA adapters."""
    lora: RetrievalLora = RetrievalLora()


class GuidanceConfig(Section):
    """Where a question looks: GradCAM heatmap, points on it, EfficientSAM's mask at the points."""

    block: int | None = Field(default=None, ge=0)
    """Layer of the matching text encoder whose cross-attention is read; null is 7, or a shallow one's last but one."""
    num_points: int = Field(default=3, ge=1)
    """The most points of a question; rather fewer than wrong ones."""
    min_share: float = Field(default=0.3, gt=0.0, le=1.0)
    """Regions whose heat peaks below this part of the hottest one's are left out."""
    smoothing: float = Field(default=1.0, ge=0.0, le=100.0)
    """Standard deviation with which the heatmap is smoothed before points are chosen, in 24ths of the image's side."""
    blend: float = Field(default=0.5, ge=0.0, le=1.0)
    """How much of the heat, or of the second stream, the mask decides; 0 asks for no mask."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the clustering behind the points."""


class ModelConfig(Section):
    """Towers by reference, and the fusion between them.

    A reference is a hub id (`Salesforce/blip-vqa-base`, with `@revision` to pin it), a local directory, or `scratch`;
    vision towers may be backbones of timm too (docs/references.md). Equal references share one module, but for the two
    vision towers and for backbones of timm; what no loss uses is not loaded.
    """

    vision: str = SCRATCH
    """Reference of the first vision tower: BLIP's ViT, a backbone of timm (`timm:NAME.TAG`), or an LXMERT, which reads
    regions; `efficient_sam` is the encoder of `model.efficient_sam`, frozen."""
    match: str = SCRATCH
    """Reference of the matching text encoder and its head (BLIP ITM), or of the LXMERT that `vision` names."""
    answer: str = SCRATCH
    """Reference of the question encoder and answer decoder (BLIP VQA), or of T5."""
    text_start: TextStart | None = None
    """What stands first in the text that BLIP's encoders read, [CLS] or [ENC]; null is what each checkpoint was trained
    with: [ENC] for BLIP's own, what an exported checkpoint says of itself, [CLS] for `scratch`."""
    second_stream: Literal["efficient_sam", "efficient_sam_masks", "blip", "timm", "none"] = "efficient_sam"
    """The second vision tower. `efficient_sam_masks` weighs its map by the mask of each question, so that the fusion
    runs once per question instead of once per image; `blip` is a second BLIP encoder; `timm` is a backbone of timm;
    `none` is a single stream."""
    second_vision: str = SCRATCH
    """Reference of the second encoder (`second_stream: blip` or `timm` alone); never shared with `vision`."""
    efficient_sam: EfficientSamConfig = EfficientSamConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    fusion: FusionConfig = FusionConfig()
    scratch: ScratchConfig = ScratchConfig()
    freeze: tuple[Tower, ...] = ("vision", "second_stream", "match", "answer")
    """Parts that are not trained, but for their LoRA adapters. A recipe that leaves this out freezes what has trained
    weights, and trains what starts from random ones."""
    lora: LoraParts = LoraParts()
    vlm: str | None = None
    """Reference of a vision-language model, which is then the whole model: any that transformers loads as
    `AutoModelForImageTextToText`; the other keys of this section but `gradient_checkpointing` have no effect."""
    reader: Literal["hi_vt5"] | None = None
    """What reads the words of pages, and is then the whole model: Hi-VT5 (Tito et al. 2022) around the T5 of `answer`;
    the other keys of this section but `freeze`, `lora.answer` and `gradient_checkpointing` have no effect."""
    retrieval: str | None = None
    """Reference of a CLIP or SigLIP, which is then the whole model: it ranks the pages of a document by a question; the
    other keys of this section but `gradient_checkpointing` have no effect."""
    head: HeadKind = "lxmert"
    """Of `losses.classify`: Linear to twice the width, GELU, LayerNorm, Linear; or Linear, ReLU, Linear."""
    gradient_checkpointing: bool | Annotated[float, Field(ge=0.0, le=1.0)] = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time. A
    number is the part of each tower's layers, from the first on; of a backbone of timm it is all or none."""

    @property
    def recomputed_share(self) -> float:
        """Part of each tower's layers whose activations are computed again."""
        return float(self.gradient_checkpointing)

    @property
    def resolved_text_start(self) -> TextStart | None:
        """Null only where a checkpoint has a say."""
        return "cls" if self.text_start is None and self.match == self.answer == SCRATCH else self.text_start


class CaptionConfig(Section):
    """How many captions, and how they are written. The defaults are PNP-VQA's for GQA."""

    num_captions: int = Field(default=100, ge=1, le=2**20)
    """Captions of each question, all different."""
    num_patches: int = Field(default=20, ge=1)
    """Cells of the heatmap that each caption sees."""
    prompt: str = "a picture of "
    """How every caption begins; it is not part of the result."""
    min_tokens: int = Field(default=10, ge=0)
    """Tokens before a caption may end, with start token and prompt."""
    max_tokens: int = Field(default=20, ge=1)
    """Tokens at which it ends, with start token and prompt."""
    top_k: int = Field(default=50, ge=1)
    """Most likely tokens among which each next one is drawn."""
    max_rounds: int = Field(default=10, ge=1)
    """Times that what repeats an earlier caption is replaced; after that a question has fewer captions."""
    rows_per_batch: int = Field(default=256, ge=1)
    """Captions written at once; of BLIP-large each holds 3 MB in fp32: keys and values of its patches and tokens."""


class PnpConfig(Section):
    """PNP-VQA (Tiong et al. 2022): answers that T5 reads from captions of what the heatmap points at. Not trained."""

    captioner: str | None = None
    """Reference of a BLIP captioner, such as `Salesforce/blip-image-captioning-base`."""
    reader: str | None = None
    """Reference of a T5 that answers questions, such as `allenai/unifiedqa-v2-t5-base-1363200`."""
    looks_with: ImageTokens = "fused"
    """Image tokens behind the heatmap: `fused` are the trained fusion's, `plain` those of the vision tower alone, as in
    the paper. A run with `efficient_sam_masks` always looks with plain ones."""
    captions: CaptionConfig = CaptionConfig()
    captions_per_context: int = Field(default=5, ge=1)
    """Captions that the reader's encoder sees at a time: 5 for GQA, 1 for VQAv2 and OK-VQA."""
    max_answer_tokens: int = Field(default=20, ge=2)
    """Tokens of an answer, start and end included."""
    max_context_tokens: int = Field(default=512, ge=1)
    """Tokens of a question with its captions; what is longer is cut."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides patches and words, together with the question's id."""


class AnswersConfig(Section):
    """Answers that are chosen from a list: the classes of `losses.classify`, and the candidates of a ranking."""

    list: str | None = None
    """JSON file with a list of answers; null takes those of the training split."""
    min_count: int = Field(default=9, ge=1)
    """Without a file: questions of the training split that an answer must be the most frequent one of."""
    start_from: str | None = None
    """LXMERT whose head over answers the class head starts from, by what the answers are called; null starts anew."""
    start_list: str | None = None
    """JSON file with the answers of that head in their order, such as LXMERT's all_ans.json; null takes those that its
    config.json names."""
    by: Literal["generate", "classify", "rank"] | None = None
    """Whose answers are scored and handed in: those that the decoder writes, those of the class head, or those that the
    decoder finds most likely in the list; null is the first that the recipe's losses train."""
    candidates: int = Field(default=128, ge=1)
    """Answers of the list that a ranking looks at in whole: those with the most likely first tokens."""
    double_first_token: bool = False
    """Let the first token count twice in a ranking, as ALBEF's own code does."""


class LossConfig(Section):
    """How much each loss weighs; a loss of weight 0 is not computed and its towers are not loaded.

    The weights that a recipe leaves out are those of its task (`duoflow tasks`); below stand those of `gqa`.
    """

    itm: float = Field(default=1.0, ge=0.0)
    """Weight of image-text matching."""
    answer: float = Field(default=1.0, ge=0.0)
    """Weight of answer generation."""
    classify: float = Field(default=0.0, ge=0.0)
    """Weight of naming a class: a label, or an answer of a list."""
    page: float = Field(default=0.0, ge=0.0)
    """Weight of naming the page of a window that shows the answer."""
    retrieve: float = Field(default=0.0, ge=0.0)
    """Weight of finding the page that answers a question."""
    answer_tokens: Literal["mean", "sum"] = "mean"
    """How the cross-entropies of an answer's tokens are put together; ALBEF adds them up."""
    genome: float = Field(default=0.5, ge=0.0)
    """Weight of a question of Visual Genome among those of VQA."""
    negatives: tuple[Literal["answer", "question"], ...] = ("answer", "question")
    """Wrong pairs for matching: the question with a wrong answer; a question of another image with its answer."""


def vision_references(model: ModelConfig) -> dict[Tower, tuple[str, str]]:
    """The vision towers that come from a reference to a checkpoint: (key, reference) by tower."""
    found: dict[Tower, tuple[str, str]] = {}
    if model.vision != EFFICIENT_SAM:
        found["vision"] = ("model.vision", model.vision)
    if model.second_stream in ("blip", "timm"):
        found["second_stream"] = ("model.second_vision", model.second_vision)
    return found


def uses_efficient_sam(model: ModelConfig) -> bool:
    """Whether one of the streams is EfficientSAM's."""
    return model.vision == EFFICIENT_SAM or model.second_stream.startswith(EFFICIENT_SAM)


def second_stream_is_untrained(model: ModelConfig) -> bool:
    """Whether there is a second vision tower that starts from random weights."""
    if model.second_stream in ("blip", "timm"):
        return read_reference(model.second_vision).is_untrained
    return model.second_stream != "none" and model.efficient_sam.checkpoint is None


def text_towers(task: TaskData, losses: LossConfig) -> frozenset[str]:
    """The text towers that the losses of a task use: `match`, `answer` or both."""
    return frozenset(task.blocks[block].tower for part, block in task.reads.items() if getattr(losses, part) > 0)


def untrained_towers(model: ModelConfig, used: Collection[str]) -> tuple[Tower, ...]:
    """Towers of a run that start from random weights; `used` are its text towers."""
    starts_untrained: dict[Tower, bool] = {
        "vision": model.efficient_sam.checkpoint is None
        if model.vision == EFFICIENT_SAM
        else read_reference(model.vision).is_untrained,
        "second_stream": second_stream_is_untrained(model),
        "match": "match" in used and model.match == SCRATCH,
        "answer": "answer" in used and model.answer == SCRATCH,
    }
    return tuple(part for part, untrained in starts_untrained.items() if untrained)
