"""Images in compressed files: bytes in the context of their neighbours come back, small, and damage is noticed."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import parvae
from parvae.cli import vae
from parvae.errors import CorruptFileError
from parvae.vaez import rows
from parvae.vaez.clusters import groups_of, joined_contexts
from parvae.vaez.container import Reader
from parvae.vaez.pixel_fit import NEIGHBOURS, shape_of
from parvae.vaez.pixels import PixelContexts
from parvae.vaez.prediction import differences_of, images_from


def blobs(num_images: int, *, side: int = 20, channels: int = 1, seed: int = 0) -> Any:
    """(n, side, side, channels) smooth spots on black, with a little noise in the bright places."""
    rng = np.random.default_rng(seed)
    axis = np.arange(side)
    y, x, size = [*rng.uniform(side / 4, 3 * side / 4, (2, num_images, 1, 1)).tolist(), 3.0]
    distance = (axis[:, None] - np.array(y)) ** 2 + (axis - np.array(x)) ** 2
    bright = 300 * np.exp(-distance / 2 / size**2)[..., None] * rng.uniform(0.7, 1, channels)
    noisy = bright + (bright > 40) * rng.normal(0, 2, bright.shape)
    return np.clip(noisy - 20, 0, 255).astype(np.uint8)


@given(images=hnp.arrays("u1", st.tuples(*[st.integers(0, 6)] * 3, st.integers(1, 5)), elements=st.integers(0, 255)))
@settings(deadline=None, max_examples=60)
def test_any_images_come_back(images: Any) -> None:
    for shaped in (images, images[..., 0], images.reshape(len(images), int(np.prod(images.shape[1:])))):
        found = parvae.decompress(parvae.compress({"image": shaped}))["image"]
        assert found.shape == shaped.shape
        assert found.tobytes() == shaped.tobytes()


@given(images=hnp.arrays("u1", st.tuples(st.integers(0, 3), *[st.integers(1, 6)] * 2, st.integers(1, 4))))
@settings(deadline=None)
def test_differences_give_the_images_back(images: Any) -> None:
    np.testing.assert_array_equal(images_from(differences_of(images)), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_smaller_than_lzma_makes_them(channels: int) -> None:
    images = blobs(200, channels=channels)
    for shaped in (images, images.reshape(200, -1)):
        blob = parvae.compress({"image": shaped, "row": np.arange(200)})
        assert len(blob) < 0.95 * len(lzma.compress(images.tobytes(), preset=9))
        found = parvae.decompress(blob)
        assert found["image"].tobytes() == shaped.tobytes()
        np.testing.assert_array_equal(found["row"], np.arange(200))


def test_smooth_images_are_coded_as_differences() -> None:
    ramp = np.add.outer(np.arange(60, 160), np.arange(64)).astype("u1")
    noise = np.random.default_rng(0).integers(0, 4, (50, *ramp.shape)).astype("u1")
    assert len(parvae.compress({"image": ramp + noise})) < 1.1 * noise.size * 2.8 / 8


@pytest.mark.parametrize(("height", "width", "channels"), [(20, 12, 1), (14, 20, 3)])
def test_the_sides_of_flattened_images_are_found(height: int, width: int, channels: int) -> None:
    images = blobs(60, channels=channels)[:, :height, :width]
    assert shape_of(images.reshape(60, -1)) == (height, width, channels)


def test_a_file_of_images_notices_every_flip() -> None:
    images = blobs(40, side=16)
    blob = parvae.compress({"image": images})
    rng = np.random.default_rng(0)
    for position in rng.permutation(len(blob))[:150]:
        damaged = bytearray(blob)
        damaged[position] ^= 1 << int(rng.integers(0, 8))
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(bytes(damaged))
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(blob[:position])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(400), pa.list_(pa.uint8(), 400)])
def test_columns_of_raw_pixels_are_images(kind: pa.DataType) -> None:
    images = blobs(100).reshape(100, 400)
    rows = images.tolist() if pa.types.is_fixed_size_list(kind) else [image.tobytes() for image in images]
    table = pa.table({"image": pa.array(rows, kind)})
    blob = parvae.compress(table)
    assert parvae.decompress(blob).equals(table)
    assert len(blob) < 0.95 * len(lzma.compress(images.tobytes(), preset=9))


def test_bytes_of_equal_length_that_repeat_stay_a_dictionary() -> None:
    table = pa.table({"key": pa.array([b"%016d" % (row % 3) for row in range(999)], pa.binary())})
    blob = parvae.compress(table)
    assert parvae.decompress(blob).equals(table)
    assert len(blob) < 900


def test_a_neighbour_that_comes_later_is_refused() -> None:
    facts = {"shape": [4, 4, 1], "neighbours": [[0, 1, 0]]}
    with pytest.raises(CorruptFileError, match="come after"):
        PixelContexts.from_bytes(facts, 2, bytes(100), 0)


def test_every_neighbour_is_decoded_before() -> None:
    assert all(dx + 2 * dy < 0 for dy, dx, _ in NEIGHBOURS)


@given(counts=hnp.arrays("i8", st.integers(1, 60), elements=st.integers(0, 1000)), wanted=st.integers(1, 20))
@settings(deadline=None)
def test_groups_are_numbered_without_gaps(counts: Any, wanted: int) -> None:
    groups = groups_of(counts, wanted).astype(int)
    assert groups[0] == 0
    assert set(np.diff(groups)) <= {0, 1}


def test_contexts_that_foretell_the_same_share_a_table() -> None:
    rng = np.random.default_rng(0)
    kinds = np.array([[900, 90, 10], [10, 90, 900], [300, 400, 300]])
    which = np.arange(30) % 3
    joined = joined_contexts(rng.poisson(kinds[which]), 3)
    assert [len(set(joined[which == kind])) for kind in range(3)] == [1, 1, 1]
    assert len(set(joined)) == 3


def test_blocks_of_images_hold_a_bounded_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1 << 14)
    images = blobs(100).reshape(100, 400)
    kinds: list[pa.DataType] = [pa.list_(pa.uint8(), 400), pa.binary(400)]
    table = pa.table({"list": pa.array(images.tolist(), kinds[0]), "raw": pa.array(map(bytes, images), kinds[1])})
    source, packed = tmp_path / "in.parquet", tmp_path / "x.vaez"
    pq.write_table(table, source)
    done = CliRunner().invoke(vae, ["compress", str(source), "-o", str(packed), "--verify"])
    assert done.exit_code == 0, done.output
    assert len(Reader(io.BytesIO(packed.read_bytes())).blocks) == 5
    assert parvae.decompress(packed.read_bytes()).equals(table)
    assert len(Reader(io.BytesIO(parvae.compress(table))).blocks) == 5
