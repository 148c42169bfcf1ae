"""Encoded images: their role, the way from files to pixels and back, and what is said of those that do not fit."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import read_rows, write_parquet
from conftest import export_bundle, train_small
from PIL import Image

import parvae
from parvae import images
from parvae.errors import DataError, SettingError
from parvae.images import content_of, decode_images, encode_png, open_image
from parvae.schema import Column, ImageFacts, Role, Schema
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import ColumnStatistics, statistics_of

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 18, 22
RIFF = b"RIFF\x00\x00\x00\x00WEBP"


def picture(mode: str = "L", *, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """A bright spot somewhere on a dark ground."""
    y, x = np.mgrid[:height, :width]
    centre = RNG.uniform(0.2, 0.8, 2) * (height, width)
    shade = 255.0 * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 20.0)
    return Image.fromarray(shade.astype(np.uint8)).convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def schema_of(files: Any, *, kind: pa.DataType | None = None, override: str | None = None) -> Schema:
    table = pa.table({"photo": pa.array(files, kind)})
    return infer_schema(statistics_of(table), overrides={"photo": override} if override else {}, label=None)


def photo(**facts: Any) -> Column:
    shape = {"height": HEIGHT, "width": WIDTH, "channels": 1, "mean": 9.0, "stddev": 9.0}
    return Column(
        name="photo", role=Role.IMAGE, arrow_type="binary", reason="given", facts=ImageFacts(**{**shape, **facts})
    )


# Roles


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3), ("RGBA", 3), ("LA", 1)])
def test_files_of_every_mode_are_images_of_one_or_three_channels(mode: str, channels: int) -> None:
    (column,) = schema_of([file_of(picture(mode)) for _ in range(12)])
    assert column.role is Role.IMAGE
    facts = column.facts_as(ImageFacts)
    assert (facts.height, facts.width, facts.channels, facts.resizes) == (HEIGHT, WIDTH, channels, False)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "arrow_type",
    [
        pa.binary(),
        pa.large_binary(),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
    ],
)
def test_every_format_in_every_form_of_column_is_read(kind: str, arrow_type: pa.DataType) -> None:
    files = [file_of(picture("RGB"), kind, quality=90) for _ in range(12)]
    column = pa.array([{"bytes": file} for file in files] if pa.types.is_struct(arrow_type) else files, arrow_type)
    schema = infer_schema(statistics_of(pa.table({"photo": column})), overrides={}, label=None)
    assert schema["photo"].role is Role.IMAGE
    from parvae.rows import read_inputs

    arrays, num_rows = read_inputs(schema, pa.table({"photo": column}), num_threads=2)
    wanted = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    assert num_rows == 12
    np.testing.assert_array_equal(arrays["image.photo"], wanted)


def test_statistics_of_pixels_do_not_depend_on_chunks_or_threads() -> None:
    files = [file_of(picture()) for _ in range(40)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    halves = [statistics_of(pa.table({"photo": part}), num_threads=3)["photo"] for part in (files[:7], files[7:])]
    halves[0].merge(halves[1])
    assert halves[0].moments.mean == pytest.approx(pixels.mean())
    assert halves[0].moments.stddev == pytest.approx(pixels.std())
    assert halves[0].images.sizes == {(HEIGHT, WIDTH): 40}


def test_images_of_mixed_sizes_are_fitted_to_the_commonest_and_that_is_said() -> None:
    files = [file_of(picture(height=20 + row % 2 * 4 * (row > 6))) for row in range(20)]
    schema = schema_of(files)
    facts = schema["photo"].facts_as(ImageFacts)
    assert (facts.height, facts.width, facts.resizes) == (20, WIDTH, True)
    assert "of 20 x 22" in schema["photo"].reason
    assert "7 of other sizes are resized to fit" in schema["photo"].reason
    decoded = decode_images(schema["photo"], files).reshape(20, 20, WIDTH)
    larger = Image.open(io.BytesIO(files[7]))
    assert larger.size == (WIDTH, 24)
    np.testing.assert_array_equal(decoded[7], np.asarray(larger.resize((WIDTH, 20), Image.Resampling.BILINEAR)))


def test_images_of_mixed_modes_are_read_as_colour_and_that_is_said() -> None:
    files = [file_of(picture("RGB" if row % 3 else "L")) for row in range(12)]
    schema = schema_of(files)
    assert schema["photo"].facts_as(ImageFacts).channels == 3
    assert "4 grey ones are read as colour" in schema["photo"].reason


def test_large_images_are_scaled_down_and_that_is_said() -> None:
    schema = schema_of([file_of(picture(height=100, width=300), "JPEG")] * 10)
    facts = schema["photo"].facts_as(ImageFacts)
    assert (facts.height, facts.width, facts.resizes) == (43, 128, True)
    assert "100 x 300, grey; scaled down to 43 x 128" in schema["photo"].reason


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda file: file[: len(file) // 2], "cannot be decoded"),
        (lambda file: b"GIF89a" + file, "does not begin like a PNG, JPEG or WebP file"),
        (lambda file: RIFF + file, "cannot be decoded"),
    ],
)
def test_a_broken_image_among_good_ones_is_named_before_training(spoil: Callable[[bytes], bytes], told: str) -> None:
    files = [file_of(picture()) for _ in range(30)]
    files[17] = spoil(files[17])
    with pytest.raises(DataError, match=rf"(?s)'photo'.*1 values.*row 17 of the data set.*{told}.*photo:ignored"):
        schema_of(files)
    first, second = (statistics_of(pa.table({"photo": part}))["photo"] for part in (files[:5], files[5:]))
    first.merge(second)
    with pytest.raises(DataError, match="row 17 of"):
        infer_schema({"photo": first}, overrides={}, label=None)
    assert infer_schema({"photo": first, "x": numbers(30)}, overrides={"photo": "ignored"}, label=None)


def numbers(num_rows: int) -> ColumnStatistics:
    return statistics_of(pa.table({"x": RNG.normal(size=num_rows)}))["x"]


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_a_null_among_the_images_is_named(form: str) -> None:
    files: list[Any] = [file_of(picture()) for _ in range(12)]
    files[4] = None
    values = files if form == "bytes" else [{"bytes": file} for file in files]
    with pytest.raises(DataError, match="'photo' holds images, and 1 nulls"):
        schema_of(values)


def test_deep_images_are_refused_rather_than_flattened() -> None:
    deep = file_of(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100))
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        schema_of([deep] * 12)


def test_bytes_that_are_no_images_are_left_out_with_a_word() -> None:
    statistics = statistics_of(pa.table({"blob": [b"abc" + bytes([row]) for row in range(12)], "x": np.arange(12.0)}))
    schema = infer_schema(statistics, overrides={}, label=None)
    assert schema["blob"].role is Role.IGNORED
    assert "type binary is not read yet" in schema["blob"].reason
    with pytest.raises(SettingError, match=r"'blob' .* cannot be image"):
        infer_schema(statistics, overrides={"blob": "image"}, label=None)


# Pixels


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (9, 9), (200, 0, 0, 0))
    assert open_image(file_of(clear)).getpixel((3, 3)) == (255, 255, 255)


def test_a_camera_that_was_held_sideways_is_believed() -> None:
    image = picture(height=10, width=20)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(file_of(image, "JPEG", exif=exif)).size == (10, 20)


def test_only_three_formats_are_ever_opened() -> None:
    for kind in ("GIF", "BMP", "TIFF", "PPM"):
        with pytest.raises(DataError, match="cannot be decoded"):
            open_image(file_of(picture(), kind))


def test_a_small_file_that_claims_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(DataError, match="22 x 18 pixels, more than 395"):
        open_image(file_of(picture()))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "null"),
        (file_of(picture(height=19)), f"19 x 22, but all were {HEIGHT} x {WIDTH}"),
        (file_of(picture("RGB")), "in colour"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (3.5, "a float is no encoded image"),
    ],
)
@pytest.mark.parametrize("num_threads", [1, 4])
def test_an_image_that_does_not_fit_the_model_is_named_with_its_row(value: Any, told: str, num_threads: int) -> None:
    values = [file_of(picture()) for _ in range(5)]
    with pytest.raises(DataError, match=f"'photo', row 5: .*{told}"):
        decode_images(photo(), [*values, value], num_threads=num_threads)


def test_grey_images_fit_a_model_of_colour() -> None:
    image = picture()
    decoded = decode_images(photo(channels=3), [file_of(image)]).reshape(HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(decoded, np.repeat(np.asarray(image)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_gives_back_every_pixel(channels: int) -> None:
    pixels = RNG.integers(0, 256, (3, HEIGHT, WIDTH, channels), dtype=np.uint8)
    found = decode_images(photo(channels=channels), encode_png(pixels))
    np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x"), {"bytes": b"x", "path": None}])
def test_bytes_come_in_several_forms(value: object) -> None:
    assert content_of(value) == b"x"


def test_without_pillow_the_remedy_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.table({"photo": [file_of(picture()) for _ in range(12)]}))
    script = (
        "import sys; sys.modules['PIL'] = None; sys.modules['PIL.Image'] = None\n"
        "from parvae.__main__ import main\n"
        f"sys.argv = ['vae', 'train', {path!r}, '-o', {str(tmp_path / 'run')!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'photo' holds encoded images, which need Pillow: pip install 'parvae[image]'" in done.stderr
    assert not (tmp_path / "run" / "ckpt.pt").exists()


# Whole runs


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of encoded images beside a number, in two files."""
    folder = tmp_path_factory.mktemp("faces")
    for index in range(2):
        values = [{"bytes": file_of(picture("RGB"), "JPEG", quality=90), "path": f"{row}.jpg"} for row in range(80)]
        table = pa.table({"photo": values, "weight": RNG.normal(size=80)})
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=30)
    return folder


@pytest.fixture(scope="module")
def bundle(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = train_small(faces, tmp_path_factory.mktemp("run") / "run", label=None, max_steps=30, channels=16)
    return export_bundle(run)


def test_streamed_and_decoded_rows_hold_the_same_pixels(faces: Path) -> None:
    paths = sorted(str(path) for path in faces.glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    schema = infer_schema(statistics_of(table), overrides={}, label=None)
    wanted = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["photo"].to_pylist()])
    np.testing.assert_array_equal(read_rows(paths, schema)["image.photo"], wanted)


def test_a_bundle_scores_files_and_arrays_alike(bundle: Path, faces: Path) -> None:
    vae = parvae.load(bundle, threads=2)
    table = pq.read_table(faces / "0.parquet")
    files = [row["bytes"] for row in table["photo"].to_pylist()]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    weight = table["weight"].to_numpy()
    wanted = vae.score({"photo": pixels, "weight": weight}).nats
    objects = np.array(files, dtype=object)
    for rows in (table, {"photo": files, "weight": weight}, {"photo": objects, "weight": weight}, table.to_pandas()):
        np.testing.assert_array_equal(vae.score(rows).nats, wanted)


def test_images_come_back_in_the_form_they_came_in(bundle: Path, faces: Path) -> None:
    vae = parvae.load(bundle)
    table = pq.read_table(faces / "0.parquet").slice(0, 4)
    again = vae.reconstruct(table)
    assert again.schema == table.schema
    pixels = vae.decode(vae.encode(table))["photo"]
    assert pixels.shape == (4, HEIGHT, WIDTH, 3)
    for row, wanted in zip(again["photo"].to_pylist(), pixels, strict=True):
        assert row["path"] is None
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["bytes"]))), wanted)
    rows = {"photo": [row["bytes"] for row in table["photo"].to_pylist()], "weight": table["weight"].to_numpy()}
    files = vae.reconstruct(rows)["photo"]
    assert [content[:4] for content in files] == [b"\x89PNG"] * 4
    arrays = vae.reconstruct({"photo": pixels, "weight": table["weight"].to_numpy()})["photo"]
    assert arrays.shape == pixels.shape
    assert arrays.dtype == np.uint8


def test_sampled_files_go_round(bundle: Path, faces: Path, tmp_path: Path) -> None:
    samples, scores = tmp_path / "samples.parquet", tmp_path / "scores.parquet"
    for arguments in (
        ["sample", str(bundle), "-n", "5", "-o", str(samples)],
        ["score", str(bundle), str(samples), "-o", str(scores), "--alpha", "0.2"],
    ):
        done = subprocess.run([sys.executable, "-m", "parvae", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert pq.read_schema(samples).field("photo").type == pq.read_schema(faces / "0.parquet").field("photo").type
    assert pq.read_table(scores)["score"].null_count == 0


def test_a_file_with_a_broken_image_goes_to_the_ledger_and_the_rest_is_scored(
    bundle: Path, faces: Path, tmp_path: Path
) -> None:
    good = pq.read_table(faces / "0.parquet")
    rows = good.to_pylist()
    rows[3]["photo"]["bytes"] = rows[3]["photo"]["bytes"][:200]
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(good, data / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=good.schema), data / "b.parquet")
    arguments = ["score", str(bundle), str(data), "-o", str(tmp_path / "out"), "--alpha", "0.2"]
    done = subprocess.run([sys.executable, "-m", "parvae", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'photo', row 3: it cannot be decoded" in done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["a.parquet"]
    assert "row 3" in (tmp_path / "out" / "_errors.jsonl").read_text()
