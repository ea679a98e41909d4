"""Files that hold EfficientSAM, whole or its image encoder: the official checkpoints, and our own safetensors."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.efficient_sam.decoder import MaskDecoderConfig
from model.efficient_sam.encoder import EFFICIENT_SAM_CONFIGS, EfficientSamEncoder, EfficientSamEncoderConfig
from model.efficient_sam.segmenter import Segmenter, SegmenterConfig
from model.fit import misfits
from shards.atomic import write_atomically
from shards.errors import ConfigError, DataError, UserError

Sizes = EfficientSamEncoderConfig | MaskDecoderConfig | SegmenterConfig

PREFIX = "image_encoder."
OTHER_PREFIXES = ("prompt_encoder.", "mask_decoder.")
SOURCE = "https://github.com/yformer/EfficientSAM/raw/main/weights"
OFFICIAL = {"vitt": "efficient_sam_vitt.pt", "vits": "efficient_sam_vits.pt.zip"}
"""Variant to its file at the source."""
BLOB_SHA1 = {
    "efficient_sam_vitt.pt": "af883c49e33c68f01107be52df0ecad26a48355f",
    "efficient_sam_vits.pt.zip": "fa4e9f05f753e109dbde052f97d37903b833cf53",
}


class EncoderAloneError(DataError):
    """The file is sound, but holds nothing that makes masks."""


def load_efficient_sam_encoder(
    path: str | os.PathLike[str], config: EfficientSamEncoderConfig | None = None
) -> EfficientSamEncoder:
    """Read an image encoder in fp32: an official `.pt`, or a `.safetensors` with the same key names.

    A `.pt` does not say its sizes, so it needs `config` (one of EFFICIENT_SAM_CONFIGS). A `.safetensors` carries them
    as metadata; a `config` given as well may only change `image_size`. Prompt encoder and mask decoder are passed over.

    Raises:
        DataError: the file is missing, unreadable, or its image encoder does not fit.
        ConfigError: the sizes are unknown, or contradict the file.
    """
    path = Path(path).expanduser()
    state, metadata = _read(path, config)
    state = {name: value for name, value in state.items() if not name.startswith(OTHER_PREFIXES)}
    stored = _encoder_from_metadata(path, metadata) if "embed_dim" in metadata else None
    encoder = EfficientSamEncoder(_agreed_encoder(path, stored, config))
    expected = {PREFIX + name: value for name, value in encoder.state_dict().items()}
    _check_fit(path, state, expected, "image encoder")
    encoder.load_state_dict(_part(state, PREFIX))
    return encoder


def load_segmenter(
    path: str | os.PathLike[str],
    sizes: SegmenterConfig | None = None,
    image_encoder: EfficientSamEncoder | None = None,
) -> Segmenter:
    """Read a whole segmenter in fp32: an official `.pt`, or a `.safetensors` with the same key names.

    A `.pt` does not say its sizes, so it needs `sizes` (one of SEGMENTER_CONFIGS) or an image encoder. A `.safetensors`
    carries them as metadata; `sizes` given as well may only change the encoder's `image_size`.

    Args:
        path: the file, which holds all three parts.
        sizes: those of the file.
        image_encoder: one that is loaded already and is shared: it keeps its weights, its precision and its device.
            Its sizes stand for `sizes.encoder`; without `sizes`, the decoder of a `.pt` is expected at official sizes.

    Raises:
        DataError: the file is missing, unreadable, holds an image encoder alone, or does not fit.
        ConfigError: the sizes are unknown, or contradict the file.
    """
    path = Path(path).expanduser()
    asked = sizes.encoder if sizes is not None else None
    asked = image_encoder.config if image_encoder is not None else asked
    state, metadata = _read(path, asked)
    if state and all(name.startswith(PREFIX) for name in state):
        raise EncoderAloneError(
            f"{path}: holds an image encoder alone, expected a prompt encoder and a mask decoder too; give an official "
            f"checkpoint ({', '.join(BLOB_SHA1)}) or a segmenter that was saved whole"
        )
    stored = _segmenter_from_metadata(path, metadata) if "embed_dim" in metadata else None
    segmenter = Segmenter(_agreed_segmenter(path, stored, sizes, asked), image_encoder)
    _check_fit(path, state, segmenter.state_dict(), "segmenter")
    segmenter.prompt_encoder.load_state_dict(_part(state, "prompt_encoder."))
    segmenter.mask_decoder.load_state_dict(_part(state, "mask_decoder."))
    if image_encoder is None:
        segmenter.image_encoder.load_state_dict(_part(state, PREFIX))
    return segmenter


def save_efficient_sam_encoder(encoder: EfficientSamEncoder, path: str | os.PathLike[str]) -> None:
    """Write weights under their official names, with the sizes as metadata, to a `.safetensors`; never half a file."""
    state = {PREFIX + name: value for name, value in encoder.state_dict().items()}
    _write(Path(path).expanduser(), state, _encoder_sizes(encoder.config), "an image encoder")


def save_segmenter(segmenter: Segmenter, path: str | os.PathLike[str]) -> None:
    """Write all three parts as `save_efficient_sam_encoder` writes one."""
    config = segmenter.config
    sizes = _encoder_sizes(config.encoder) | _decoder_sizes(config.decoder) | {"max_points": config.max_points}
    _write(Path(path).expanduser(), segmenter.state_dict(), sizes, "a segmenter")


def _write(path: Path, state: Mapping[str, Tensor], sizes: Mapping[str, int | str], what: str) -> None:
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: {what} is written as .safetensors; give the file that ending")
    content = save(
        {name: value.detach().cpu().contiguous() for name, value in state.items()},
        metadata={name: str(value) for name, value in sizes.items()},
    )
    write_atomically(path, content)


def _encoder_sizes(config: EfficientSamEncoderConfig) -> dict[str, int | str]:
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "neck_dims": f"{config.neck_width},{config.neck_width}",
        "pos_grid": config.pos_grid,
    }


def _decoder_sizes(config: MaskDecoderConfig) -> dict[str, int | str]:
    return {
        "decoder_depth": config.depth,
        "decoder_num_heads": config.heads,
        "decoder_mlp_dim": config.mlp_width,
        "upscaling_layer_dims": ",".join(map(str, config.upscaling_widths)),
        "num_multimask_outputs": config.num_masks,
        "iou_head_depth": config.iou_depth,
        "iou_head_hidden_dim": config.iou_width,
    }


def _encoder_from_metadata(path: Path, metadata: Mapping[str, str]) -> EfficientSamEncoderConfig:
    try:
        neck_width, same_width = metadata["neck_dims"].split(",")
        if neck_width != same_width:
            raise ConfigError(f"{path}: neck_dims {metadata['neck_dims']} differ; both convolutions need one width")
        return EfficientSamEncoderConfig(
            image_size=int(metadata["img_size"]),
            patch_size=int(metadata["patch_size"]),
            width=int(metadata["embed_dim"]),
            depth=int(metadata["depth"]),
            heads=int(metadata["num_heads"]),
            neck_width=int(neck_width),
            mlp_ratio=int(metadata.get("mlp_ratio", "4")),
            pos_grid=int(metadata.get("pos_grid", "14")),
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: metadata does not give the sizes of an image encoder ({error!r})") from error


def _segmenter_from_metadata(path: Path, metadata: Mapping[str, str]) -> SegmenterConfig:
    encoder = _encoder_from_metadata(path, metadata)
    try:
        decoder = MaskDecoderConfig(
            depth=int(metadata["decoder_depth"]),
            heads=int(metadata["decoder_num_heads"]),
            mlp_width=int(metadata["decoder_mlp_dim"]),
            upscaling_widths=tuple(int(width) for width in metadata["upscaling_layer_dims"].split(",")),
            num_masks=int(metadata["num_multimask_outputs"]),
            iou_depth=int(metadata["iou_head_depth"]),
            iou_width=int(metadata["iou_head_hidden_dim"]),
        )
        return SegmenterConfig(encoder=encoder, decoder=decoder, max_points=int(metadata["max_points"]))
    except (KeyError, ValueError, ConfigError) as error:
        raise DataError(f"{path}: metadata does not give the sizes of a segmenter ({error!r})") from error


def _agreed_encoder(
    path: Path, stored: EfficientSamEncoderConfig | None, asked: EfficientSamEncoderConfig | None
) -> EfficientSamEncoderConfig:
    agreed = asked or stored
    if agreed is None:
        raise ConfigError(f"{path}: does not say its sizes; name them: one of {', '.join(EFFICIENT_SAM_CONFIGS)}")
    if stored is not None:
        _refuse_differences(path, stored, replace(agreed, image_size=stored.image_size))
    return agreed


def _agreed_segmenter(
    path: Path,
    stored: SegmenterConfig | None,
    asked: SegmenterConfig | None,
    asked_encoder: EfficientSamEncoderConfig | None,
) -> SegmenterConfig:
    encoder = _agreed_encoder(path, stored.encoder if stored is not None else None, asked_encoder)
    agreed = replace(asked or stored or SegmenterConfig(), encoder=encoder)
    if stored is not None:
        _refuse_differences(path, stored.decoder, agreed.decoder)
        _refuse_differences(path, replace(stored, encoder=encoder), agreed)
    return agreed


def _refuse_differences(path: Path, stored: Sizes, asked: Sizes) -> None:
    pairs = [(field.name, getattr(stored, field.name), getattr(asked, field.name)) for field in fields(stored)]
    differing = [f"{name} {found} (asked for {wanted})" for name, found, wanted in pairs if found != wanted]
    if differing:
        raise ConfigError(f"{path}: has {', '.join(differing)}; only image_size can differ from the file")


def _read(path: Path, config: EfficientSamEncoderConfig | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under their official names, and the metadata where the format has any."""
    if not path.is_file():
        raise DataError(how_to_get(path, config))
    return _read_safetensors(path) if path.suffix == ".safetensors" else (_read_official(path), {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return state, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({_first_line(error)})") from error


def _read_official(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        unzip = "; unzip it first" if path.suffix == ".zip" else ""
        raise DataError(f"{path}: not a readable weights-only checkpoint ({_first_line(error)}){unzip}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: expected an official EfficientSAM checkpoint, a dict with tensors under 'model'")
    return state


def _check_fit(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Pass, or raise an error that names what is missing, unexpected or of another shape."""
    faults = misfits(state, expected)
    if faults:
        raise DataError(
            f"{path}: does not fit this EfficientSAM {what}: {faults}; "
            f"check the file and its sizes ({', '.join(EFFICIENT_SAM_CONFIGS)})"
        )


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What lies under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def how_to_get(path: Path, config: EfficientSamEncoderConfig | None) -> str:
    """That a weights file is missing, where it was looked for, and the way to get it."""
    missing = f"EfficientSAM weights {path.name} not found, looked for at {path.absolute()}"
    if path.suffix == ".safetensors":
        return f"{missing}; give the path of a file that was saved before, or of an official .pt"
    small = "vits" in path.name or (config is not None and config.width == EFFICIENT_SAM_CONFIGS["vits"].width)
    name = OFFICIAL["vits" if small else "vitt"]
    unzip = " and unzip it" if name.endswith(".zip") else ""
    return f"{missing}; download {SOURCE}/{name}, check that `git hash-object {name}` prints {BLOB_SHA1[name]}{unzip}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
