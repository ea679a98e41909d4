"""Small random vision-language models of every family, with tokenizers, processors and chat templates made by code."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers import models as families

_USER, _END = "<|im_start|>", "<|im_end|>"
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


class Family(NamedTuple):
    """A model with its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin


def chat_template(image: str) -> str:
    """Turns in ChatML; `image` stands where a picture does."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def byte_tokenizer(*specials: str, **named: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and special tokens; `named` ones are attributes too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token=_END, pad_token="<|endoftext|>", extra_special_tokens=named
    )
    made.add_tokens([AddedToken(text, special=True) for text in (_USER, *specials)], special_tokens=True)
    return made


def _qwen(name: str, vision: Mapping[str, Any], **text: Any) -> Callable[[], Family]:
    def build() -> Family:
        module = getattr(families, name)
        names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
        tokenizer = byte_tokenizer(*names)
        start, end, image, video = tokenizer.convert_tokens_to_ids(list(names))
        patch = vision["patch_size"]
        config = AutoConfig.for_model(
            name,
            text_config=_TEXT
            | {"vocab_size": len(tokenizer), "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default"}}
            | text,
            vision_config=dict(vision),
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
        sizes = {"patch_size": patch, "size": {"shortest_edge": (2 * patch) ** 2, "longest_edge": (8 * patch) ** 2}}
        image_processor = families.qwen2_vl.Qwen2VLImageProcessor(**sizes)
        video_processor = families.qwen2_vl.Qwen2VLVideoProcessor()
        kind = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[
            name
        ]
        template = chat_template("<|vision_start|><|image_pad|><|vision_end|>")
        processor = getattr(module, kind)(image_processor, tokenizer, video_processor, chat_template=template)
        return _family(config, processor)

    return build


def _llava() -> Family:
    tokenizer = byte_tokenizer("<image>")
    config = AutoConfig.for_model(
        "llava",
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **_TEXT},
        vision_config={"model_type": "clip_vision_model", **_VISION, "image_size": 28, "patch_size": 7},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    image_processor = families.clip.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    template = (
        "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    )
    processor = families.llava.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return _family(config, processor)


def _llava_onevision() -> Family:
    tokenizer = byte_tokenizer("<image>", "<video>")
    pinpoints = [[28, 28], [28, 56], [56, 28]]
    config = AutoConfig.for_model(
        "llava_onevision",
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **_TEXT},
        vision_config={"model_type": "siglip_vision_model", **_VISION, "image_size": 28, "patch_size": 7}
        | {"vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
    )
    image_processor = families.llava_onevision.LlavaOnevisionImageProcessor(
        size={"height": 28, "width": 28}, image_grid_pinpoints=pinpoints
    )
    processor = families.llava_onevision.LlavaOnevisionProcessor(
        image_processor,
        tokenizer,
        families.llava_onevision.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>"),
    )
    return _family(config, processor)


def _smolvlm(name: str) -> Callable[[], Family]:
    def build() -> Family:
        cells = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
        named = {
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        }
        tokenizer = byte_tokenizer(*named.values(), *cells, **named)
        config = AutoConfig.for_model(
            name,
            text_config={"model_type": "llama", "vocab_size": len(tokenizer) + 8, **_TEXT, "pad_token_id": 0},
            vision_config={**_VISION, "image_size": 32, "patch_size": 8},
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )
        module = getattr(families, name)
        title = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[name]
        image_processor = getattr(module, f"{title}ImageProcessor")(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        )
        parts = [image_processor, tokenizer]
        if name == "smolvlm":
            parts.append(module.SmolVLMVideoProcessor())
        processor = getattr(module, f"{title}Processor")(
            *parts, image_seq_len=4, chat_template=chat_template("<image>")
        )
        return _family(config, processor)

    return build


def _internvl() -> Family:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = byte_tokenizer(*named.values(), **named)
    config = AutoConfig.for_model(
        "internvl",
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **_TEXT},
        vision_config={**_VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    image_processor = families.got_ocr2.GotOcr2ImageProcessor(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=2
    )
    processor = families.internvl.InternVLProcessor(
        image_processor,
        tokenizer,
        families.internvl.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=chat_template("<IMG_CONTEXT>\n"),
    )
    return _family(config, processor)


def _gemma3() -> Family:
    named = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
    tokenizer = byte_tokenizer(*named.values(), **named)
    ids = {f"{name}_index": tokenizer.convert_tokens_to_ids(text) for name, text in named.items()}
    config = AutoConfig.for_model(
        "gemma3",
        text_config={**_TEXT, "vocab_size": len(tokenizer), "head_dim": 8, "sliding_window": 24},
        vision_config={"model_type": "siglip_vision_model", **_VISION, "image_size": 32, "patch_size": 8}
        | {"vision_use_head": False},
        mm_tokens_per_image=4,
        **ids,
    )
    image_processor = families.gemma3.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    processor = families.gemma3.Gemma3Processor(
        image_processor, tokenizer, image_seq_length=4, chat_template=chat_template("<start_of_image>")
    )
    return _family(config, processor)


_QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
FAMILIES: dict[str, Callable[[], Family]] = {
    "qwen2_vl": _qwen("qwen2_vl", {**_QWEN_VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}),
    "qwen2_5_vl": _qwen(
        "qwen2_5_vl",
        {**_QWEN_VISION, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 56}
        | {"fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": _qwen(
        "qwen3_vl",
        {**_QWEN_VISION, "patch_size": 16, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 32}
        | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        head_dim=8,
    ),
    "llava": _llava,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm("smolvlm"),
    "idefics3": _smolvlm("idefics3"),
    "internvl": _internvl,
    "gemma3": _gemma3,
}


def _family(config: Any, processor: ProcessorMixin) -> Family:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    for parameter in model.parameters():  # livelier than at its start, so that what is seen makes a difference
        if parameter.dim() > 1:
            parameter.data *= 3
    ends = processor.tokenizer.eos_token_id
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ends, processor.tokenizer.pad_token_id
    model.config.get_text_config().eos_token_id = ends
    return Family(model, processor)


def write_checkpoint(family: str, directory: Path) -> Path:
    """A checkpoint as `save_pretrained` writes it."""
    model, processor = FAMILIES[family]()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
