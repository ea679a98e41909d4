"""Files that hold an EfficientSAM image encoder: the official checkpoints, and our own safetensors."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.efficient_sam import EFFICIENT_SAM_CONFIGS, EfficientSamEncoder, EfficientSamEncoderConfig
from shards.atomic import write_atomically
from shards.errors import ConfigError, DataError, UserError

PREFIX = "image_encoder."
OTHER_PREFIXES = ("prompt_encoder.", "mask_decoder.")
BLOB_SHA1 = {
    "efficient_sam_vitt.pt": "af883c49e33c68f01107be52df0ecad26a48355f",
    "efficient_sam_vits.pt.zip": "fa4e9f05f753e109dbde052f97d37903b833cf53",
}


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
    if not path.is_file():
        raise DataError(_how_to_get(path, config))
    if path.suffix == ".safetensors":
        state, stored = _read_safetensors(path)
        config = _agreed_config(path, stored, config)
    else:
        state = _read_official(path)
    if config is None:
        raise ConfigError(f"{path}: does not say its sizes; name them: one of {', '.join(EFFICIENT_SAM_CONFIGS)}")
    encoder = EfficientSamEncoder(config)
    encoder.load_state_dict(_fitting_state(path, state, encoder.state_dict()))
    return encoder


def save_efficient_sam_encoder(encoder: EfficientSamEncoder, path: str | os.PathLike[str]) -> None:
    """Write weights under their official names, with the sizes as metadata, to a `.safetensors`; never half a file."""
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: an image encoder is written as .safetensors; give the file that ending")
    state = {PREFIX + name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    content = save(state, metadata=_metadata(encoder.config))
    write_atomically(path, content)


def _metadata(config: EfficientSamEncoderConfig) -> dict[str, str]:
    sizes = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "neck_dims": f"{config.neck_width},{config.neck_width}",
        "pos_grid": config.pos_grid,
    }
    return {name: str(value) for name, value in sizes.items()}


def _config_from_metadata(path: Path, metadata: Mapping[str, str]) -> EfficientSamEncoderConfig:
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


def _agreed_config(
    path: Path, stored: EfficientSamEncoderConfig | None, asked: EfficientSamEncoderConfig | None
) -> EfficientSamEncoderConfig | None:
    if stored is None or asked is None:
        return stored or asked
    if replace(asked, image_size=stored.image_size) != stored:
        differing = [
            f"{field.name} {getattr(stored, field.name)} (asked for {getattr(asked, field.name)})"
            for field in fields(stored)
            if field.name != "image_size" and getattr(stored, field.name) != getattr(asked, field.name)
        ]
        raise ConfigError(f"{path}: has {', '.join(differing)}; only image_size can differ from the file")
    return asked


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], EfficientSamEncoderConfig | None]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            names = [name for name in file.keys() if not name.startswith(OTHER_PREFIXES)]  # noqa: SIM118 - not a dict
            state = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({_first_line(error)})") from error
    return state, _config_from_metadata(path, metadata) if metadata and "embed_dim" in metadata else None


def _read_official(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        unzip = "; unzip it first" if path.suffix == ".zip" else ""
        raise DataError(f"{path}: not a readable weights-only checkpoint ({_first_line(error)}){unzip}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: expected an official EfficientSAM checkpoint, a dict with tensors under 'model'")
    return {name: value for name, value in state.items() if not name.startswith(OTHER_PREFIXES)}


def _fitting_state(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without its prefix, or an error that names what is missing, unexpected or of another shape."""
    expected = {PREFIX + name: value for name, value in own.items()}
    faults = [f"missing {name}" for name in expected if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in expected]
    faults += [
        f"{name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise DataError(
            f"{path}: does not fit this EfficientSAM image encoder: {'; '.join(faults[:3])}{more}; "
            f"check the file and its sizes ({', '.join(EFFICIENT_SAM_CONFIGS)})"
        )
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


def _how_to_get(path: Path, config: EfficientSamEncoderConfig | None) -> str:
    missing = f"EfficientSAM weights {path.name} not found, looked for at {path.absolute()}"
    if path.suffix == ".safetensors":
        return f"{missing}; give the path of an encoder that was saved before, or of an official .pt"
    small = "vits" in path.name or (config is not None and config.width == EFFICIENT_SAM_CONFIGS["vits"].width)
    name = "efficient_sam_vits.pt.zip" if small else "efficient_sam_vitt.pt"
    unzip = " and unzip it" if small else ""
    return (
        f"{missing}; download weights/{name} from https://github.com/yformer/EfficientSAM, check that "
        f"`git hash-object {name}` prints {BLOB_SHA1[name]}{unzip}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
