"""The file with EfficientSAM's weights: there, the official one to the byte, or the commands that fetch it."""

import hashlib
import zipfile
import zlib
from pathlib import Path

from safetensors import safe_open

from model.config import ModelConfig, uses_efficient_sam
from model.efficient_sam.encoder import EFFICIENT_SAM_CONFIGS
from model.efficient_sam.weights import BLOB_SHA1, OFFICIAL, OTHER_PREFIXES, SOURCE, how_to_get
from model.towers.checkpoint_files import is_damaged
from trainer.doctor.table import Row

KEY = "model.efficient_sam.checkpoint"
_PIECE_BYTES = 1 << 20


def efficient_sam_row(model: ModelConfig) -> Row | None:
    """What there is of the file; None if the recipe names none, or has another second stream."""
    checkpoint = model.efficient_sam.checkpoint
    if checkpoint is None or not uses_efficient_sam(model):
        return None
    path = Path(checkpoint).expanduser()
    variant = model.efficient_sam.variant
    official = OFFICIAL.get(variant) if path.suffix != ".safetensors" else None
    steps = () if official is None else fetch_steps(path, official)
    if not path.is_file():
        return Row(KEY, f"{path}: no such file", how_to_get(path, EFFICIENT_SAM_CONFIGS.get(variant)), steps)
    fault = _safetensors_fault(path, model) if path.suffix == ".safetensors" else _official_fault(path, official)
    if fault is None:
        return Row(KEY, f"{path}: {_known_as(path, official)}")
    return Row(KEY, f"{path}: {fault}", f"{path}: {fault}", steps)


def fetch_steps(path: Path, official: str) -> tuple[str, ...]:
    """The commands that download an official file, check it and bring it to `path`."""
    download = path.with_name(official)
    steps = [
        f"mkdir -p {path.parent} && curl -L -o {download} {SOURCE}/{official}",
        f"git hash-object {download}   # must print {BLOB_SHA1[official]}",
    ]
    unpacked = download
    if official.endswith(".zip"):
        unpacked = download.with_suffix("")
        steps.append(f"python -m zipfile -e {download} {path.parent}")
    if unpacked != path:
        steps.append(f"mv {unpacked} {path}")
    return (*steps, f"# without a network: the same elsewhere, then copy {path.name} to {path.parent}/")


def git_blob_sha1(path: Path) -> str:
    """What `git hash-object` prints for a file."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _official_fault(path: Path, official: str | None) -> str | None:
    """Of a `.pt` under an official name, as far as there is something to compare it with."""
    download = _download(path, official)
    if download is None:
        return None
    found, expected = git_blob_sha1(download), BLOB_SHA1[download.name]
    if found != expected:
        return f"git blob SHA-1 of {download.name} is {found}, expected {expected}; download it again"
    if download != path and not _is_in_archive(path, download):
        return f"is not what {download.name} holds; unzip it again"
    return None


def _download(path: Path, official: str | None) -> Path | None:
    """The file of known content: `path`, or the archive beside it that it came from; None if there is neither."""
    if official is None or path.name != official.removesuffix(".zip"):
        return None
    download = path.with_name(official)
    return download if download.is_file() else None


def _is_in_archive(path: Path, archive: Path) -> bool:
    with zipfile.ZipFile(archive) as opened:
        sizes = {entry.file_size: entry.CRC for entry in opened.infolist() if entry.filename.endswith(".pt")}
    return sizes.get(path.stat().st_size) == _crc32(path)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            value = zlib.crc32(piece, value)
    return value


def _known_as(path: Path, official: str | None) -> str:
    if path.suffix == ".safetensors":
        return "readable"
    if _download(path, official) is not None:
        return "the official file"
    beside = f"{official} is not beside it" if official is not None else "no official variant"
    return f"there, not compared with the official one ({beside})"


def _safetensors_fault(path: Path, model: ModelConfig) -> str | None:
    if is_damaged(path):
        return "damaged, or no safetensors file"
    with safe_open(path, framework="numpy") as file:
        names, metadata = list(file.keys()), file.metadata() or {}
    if (
        model.efficient_sam.variant == "custom"
        and model.efficient_sam.image_size is None
        and "embed_dim" not in metadata
    ):
        return "does not say its sizes; give them below model.efficient_sam"
    if model.second_stream == "efficient_sam_masks" and not any(name.startswith(OTHER_PREFIXES) for name in names):
        return "holds an image encoder alone, and efficient_sam_masks needs the whole of EfficientSAM"
    return None
