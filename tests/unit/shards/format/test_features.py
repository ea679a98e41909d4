"""Cached tokens: what is written is what is read, in the bytes of a safetensors file, and no flipped byte passes."""

import tarfile

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load

from shards.build.feature_writer import FeatureTar, discard_unfinished
from shards.errors import DataError
from shards.format.features import (
    FeatureIndex,
    FeatureShard,
    Origin,
    TokenLayout,
    Tokens,
    cache_name,
    encode_feature_index,
    quantize,
    read_feature_index,
    size_fault,
    sound_digest,
)
from shards.format.index import INDEX_NAME

TOKENS, WIDTH = 3, 5
ORIGIN = Origin(stream="vision", weights="w", preprocessing="squares", images="i")


def layout(dtype: str) -> TokenLayout:
    return TokenLayout(key=ORIGIN.key(dtype)[:16], dtype=dtype, tokens=TOKENS, width=WIDTH)


def drawn(images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, TOKENS, WIDTH)).astype(np.float32)


def as_bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), np.uint8)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
class TestMembers:
    def test_a_member_is_a_safetensors_file_of_a_size_that_is_known_before(self, dtype: str):
        (tokens,) = quantize(drawn(1), dtype)
        data = layout(dtype).encode(tokens)
        assert len(data) == layout(dtype).member_bytes
        found = load(data)
        assert np.array_equal(found["values"], tokens.values)
        assert ("scales" in found) == (dtype == "int8")

    def test_what_is_decoded_is_what_was_encoded(self, dtype: str):
        (tokens,) = quantize(drawn(1), dtype)
        found = layout(dtype).decode(as_bytes(layout(dtype).encode(tokens)))
        assert np.array_equal(found.values, tokens.values)
        assert found.values.dtype == tokens.values.dtype
        assert (found.scales is None) == (dtype == "fp16")
        assert found.scales is None or np.array_equal(found.scales, tokens.scales)

    def test_no_flipped_byte_passes(self, dtype: str):
        (tokens,) = quantize(drawn(1), dtype)
        whole = layout(dtype).encode(tokens)
        for place in range(len(whole)):
            damaged = as_bytes(whole)
            damaged[place] ^= 4
            assert layout(dtype).decode(damaged) is None, place

    def test_the_member_of_another_cache_does_not_pass(self, dtype: str):
        (tokens,) = quantize(drawn(1), dtype)
        other = msgspec.structs.replace(layout(dtype), key="0" * 16)
        assert layout(dtype).decode(as_bytes(other.encode(tokens))) is None


class TestQuantize:
    def test_fp16_is_the_nearest_half(self):
        tokens = drawn(2)
        kept = quantize(tokens, "fp16")
        assert np.array_equal(np.stack([image.values for image in kept]), tokens.astype(np.float16))

    def test_int8_is_off_by_half_a_scale_at_most_and_each_token_has_its_own(self):
        tokens = drawn(2) * np.array([1e-3, 1.0, 1e3], np.float32)[None, :, None]
        for image, kept in zip(tokens, quantize(tokens, "int8"), strict=True):
            assert kept.scales.shape == (TOKENS, 1)
            assert np.allclose(kept.scales[:, 0], np.abs(image).max(axis=1) / 127)
            assert (np.abs(kept.values * kept.scales - image) <= kept.scales * 0.500001).all()

    def test_a_token_of_zeros_stays_one(self):
        (kept,) = quantize(np.zeros((1, TOKENS, WIDTH), np.float32), "int8")
        assert not (kept.values * kept.scales).any()

    def test_what_fp16_cannot_hold_is_refused_and_int8_holds_it(self):
        large = np.full((1, TOKENS, WIDTH), 1e5, np.float32)
        with pytest.raises(ValueError, match="beyond fp16; keep them as int8"):
            quantize(large, "fp16")
        (kept,) = quantize(large, "int8")
        assert np.allclose(kept.values * kept.scales, large)

    @pytest.mark.parametrize("dtype", ["fp16", "int8"])
    def test_what_is_not_finite_is_refused(self, dtype: str):
        with pytest.raises(ValueError, match="not finite"):
            quantize(np.full((1, TOKENS, WIDTH), np.nan, np.float32), dtype)


class TestTars:
    NAMES = ("000000000.vision.safetensors", "000000001.vision.safetensors", "000000002.vision.safetensors")

    def write(self, path, dtype: str = "fp16") -> tuple[FeatureShard, list[Tokens]]:
        tokens = quantize(drawn(3), dtype)
        with FeatureTar(path, layout(dtype), list(self.NAMES)) as tar:
            tar.add(tokens[:2])
            tar.add(tokens[2:])
            return tar.finish(), tokens

    @pytest.mark.parametrize("dtype", ["fp16", "int8"])
    def test_members_are_where_arithmetic_says_and_tar_finds_them_by_name(self, tmp_path, dtype: str):
        path = tmp_path / "000000.tar"
        shard, tokens = self.write(path, dtype)
        assert path.stat().st_size == shard.bytes == layout(dtype).tar_bytes(3)
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert [member.name for member in members] == list(self.NAMES)
            assert [member.offset_data for member in members] == [layout(dtype).offset(n) for n in range(3)]
            assert np.array_equal(load(tar.extractfile(members[1]).read())["values"], tokens[1].values)
        assert sound_digest(path, layout(dtype), 3) == shard.sha256

    def test_nothing_is_left_of_a_tar_that_was_not_finished(self, tmp_path):
        with FeatureTar(tmp_path / "000000.tar", layout("fp16"), list(self.NAMES)) as tar:
            tar.add(quantize(drawn(1), "fp16"))
            with pytest.raises(AssertionError):
                tar.finish()
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_process_left_is_removed_and_nothing_else(self, tmp_path):
        self.write(tmp_path / "000000.tar")
        (tmp_path / ".000001.tar.0123.partial").touch()
        discard_unfinished(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["000000.tar"]

    @pytest.mark.parametrize("damage", ["flipped", "shorter", "longer", "gone"])
    def test_a_tar_that_is_not_as_it_was_written_is_not_sound(self, tmp_path, damage: str):
        path = tmp_path / "000000.tar"
        self.write(path)
        data = bytearray(path.read_bytes())
        if damage == "flipped":
            data[layout("fp16").offset(2) + layout("fp16").member_bytes - 1] ^= 1
        path.write_bytes({"shorter": data[:-1], "longer": data + b"\0"}.get(damage, data))
        if damage == "gone":
            path.unlink()
        assert sound_digest(path, layout("fp16"), 3) is None


class TestIndex:
    def index(self, images: int = 3) -> FeatureIndex:
        shard = FeatureShard(name="000000.tar", images=images, bytes=layout("fp16").tar_bytes(images), sha256="s")
        return FeatureIndex(origin=ORIGIN, layout=layout("fp16"), precision="fp32", shards=[shard])

    def test_it_comes_back_and_no_flipped_byte_passes(self, tmp_path):
        whole = encode_feature_index(self.index())
        (tmp_path / INDEX_NAME).write_bytes(whole)
        read = read_feature_index(tmp_path)
        assert (read.origin, read.layout, read.shards) == (ORIGIN, layout("fp16"), self.index().shards)
        for place in range(0, len(whole), 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            (tmp_path / INDEX_NAME).write_bytes(damaged)
            with pytest.raises(DataError):
                read_feature_index(tmp_path)

    def test_without_one_a_cache_is_not_finished(self, tmp_path):
        with pytest.raises(DataError, match="not finished"):
            read_feature_index(tmp_path)

    def test_the_sizes_of_the_tars_tell_what_is_cut_short_or_gone(self, tmp_path):
        path, index = tmp_path / "000000.tar", self.index()
        assert size_fault(tmp_path, index, [3]) == "its 000000.tar is missing"
        path.write_bytes(b"\0" * (index.shards[0].bytes - 1))
        assert size_fault(tmp_path, index, [3]).startswith("its 000000.tar has ")
        path.write_bytes(b"\0" * index.shards[0].bytes)
        assert size_fault(tmp_path, index, [3]) is None
        assert size_fault(tmp_path, index, [4]) == "it has other numbers of images than the shards"

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"weights": "x"}, "other weights of model.vision"),
            ({"preprocessing": "circles"}, "made from circles, and this recipe has squares"),
            ({"images": "x"}, "other shards"),
        ],
    )
    def test_another_origin_has_another_name_and_the_difference_is_said(self, change: dict, said: str):
        other = msgspec.structs.replace(ORIGIN, **change)
        assert cache_name(other, "fp16") != cache_name(ORIGIN, "fp16")
        assert said in ORIGIN.difference(other)
        assert ORIGIN.difference(ORIGIN) is None
