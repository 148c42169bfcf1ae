"""Files that a codec compressed: smaller, exact, within their bounds, and never a wrong value."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from conftest import ROOT
from fitted_codecs import NAMES, WithCodec, measured, table_of, with_other_means
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from test_vaez import assert_same_rows

import parvae
from parvae.cli import vae as command
from parvae.sessions import Sessions
from parvae.vaez.bounds import Bound, Promise
from parvae.vaez.codec import Codec
from parvae.vaez.container import Reader

GOLDEN = ROOT / "tests" / "golden" / "format-4-codec.vaez"


@pytest.fixture(scope="session")
def model(codec: Codec) -> Any:
    return WithCodec(codec)


@pytest.mark.parametrize(
    "bounds", [None, {"*": "rel:0.01"}, {"size": "0.5", "weight": "pw:0.01", "income": "digits:2"}]
)
def test_rows_of_the_same_kind_take_less_and_come_back(model: Any, bounds: dict[str, str] | None) -> None:
    for num_rows, share in ((200, 0.94), (3_000, 0.97)):
        rows = measured(num_rows, seed=1)
        alone = parvae.compress(rows, bounds=bounds)
        blob = parvae.compress(rows, bounds=bounds, model=model)
        assert len(blob) < share * len(alone)
        found = parvae.decompress(blob, model=model)
        if bounds is None:
            assert_same_rows(found, rows)
        else:
            assert_same_rows(found, parvae.decompress(alone))  # the same steps


def test_few_columns_others_another_order_and_parts_of_them(model: Any) -> None:
    rows = measured(900, seed=2)
    rows["city"] = np.array(["Köln", None, "Roma"] * 300, dtype=object)
    rows["pixels"] = np.arange(2_700, dtype="u1").reshape(900, 3)
    chosen = {name: rows[name] for name in ("city", "income", "pixels", "weight", "member")}
    blob = parvae.compress(chosen, model=model, block_rows=400)
    assert_same_rows(parvae.decompress(blob, model=model), chosen)
    found = parvae.decompress(blob, model=model, columns=["income", "city"], blocks=[1])
    assert_same_rows(found, {name: chosen[name][400:800] for name in ("income", "city")})
    table = table_of(measured(500, seed=3))
    assert parvae.decompress(parvae.compress(table, model=model), model=model).equals(table)


@given(data=st.data())
@settings(deadline=None, max_examples=80)
def test_any_array_comes_back_bit_by_bit(codec: Codec, data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(0, 30))
    rows: dict[str, Any] = {}
    for name in NAMES:
        dtype = data.draw(st.sampled_from(["?", "i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8"]))
        values = data.draw(hnp.arrays(dtype, num_rows))
        mask = data.draw(st.none() | hnp.arrays("?", num_rows))
        rows[name] = values if mask is None or not mask.any() else np.ma.MaskedArray(values, mask=mask)
    model: Any = WithCodec(codec)
    assert_same_rows(parvae.decompress(parvae.compress(rows, model=model, block_rows=17), model=model), rows)


@given(
    values=hnp.arrays(st.sampled_from(["f4", "f8"]), st.integers(1, 60)),
    bound=st.sampled_from(["abs:0.01", "abs:1e-300", "abs:1e30", "pw:1e-3", "pw:0.4", "digits:3", "rel:0.01"]),
)
@settings(deadline=None, max_examples=80)
def test_every_float_is_within_its_bound(codec: Codec, values: Any, bound: str) -> None:
    model: Any = WithCodec(codec)
    blob = parvae.compress({"size": values, "income": values}, bounds={"*": bound}, model=model)
    settled = bounds_of(blob)
    for name, again in parvae.decompress(blob, model=model).items():
        wide, back = values.astype(np.float64), again.astype(np.float64)
        finite = np.isfinite(wide)
        assert np.array_equal(wide[~finite], back[~finite], equal_nan=True)
        with np.errstate(over="ignore", invalid="ignore"):
            is_pointwise = settled[name].promise in (Promise.POINTWISE, Promise.DIGITS)
            reach = settled[name].pointwise * np.abs(wide) if is_pointwise else settled[name].value
            assert ((np.abs(wide - back) <= reach) | (wide == back))[finite].all()


def test_noise_on_what_the_graph_gives_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured(500, seed=4)
    blob = parvae.compress(rows, model=model, bounds={"size": "0.5"})
    wanted = parvae.decompress(blob, model=model)
    exact, rng = Sessions.run, np.random.default_rng(0)

    def noisy(self: Sessions, graph: str, inputs: Any, **options: Any) -> dict[str, NDArray[Any]]:
        found = exact(self, graph, inputs, **options)
        return {name: (out + rng.uniform(-1e-5, 1e-5, out.shape)).astype(out.dtype) for name, out in found.items()}

    monkeypatch.setattr(Sessions, "run", noisy)
    assert_same_rows(parvae.decompress(blob, model=model), wanted)


def test_another_model_or_none_is_an_error_that_names_both(codec: Codec, model: Any) -> None:
    blob = parvae.compress(measured(300, seed=5), model=model)
    name = codec.id.hex()[:12]
    with pytest.raises(parvae.WrongModelError, match=f"{name} of a model; give that model.vae"):
        parvae.decompress(blob)
    other: Any = WithCodec(with_other_means(codec, 1.0))
    with pytest.raises(parvae.WrongModelError, match=f"{name} .* has {other.codec.id.hex()[:12]}"):
        parvae.decompress(blob, model=other)
    with pytest.raises(parvae.SettingError, match="none was given"):
        parvae.compress(measured(10, seed=5), carry_model=True)


def test_a_file_may_carry_its_codec(model: Any) -> None:
    rows = measured(1_000, seed=6)
    blob = parvae.compress(rows, model=model, carry_model=True)
    assert_same_rows(parvae.decompress(blob), rows)
    without = parvae.compress(rows, model=model)
    assert 0 < len(blob) - len(without) < 60_000


def test_a_flip_of_any_byte_and_any_cut_is_an_error(model: Any) -> None:
    blob = parvae.compress(measured(150, seed=7), model=model)
    for position in range(len(blob)):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(bytes(damaged), model=model)
    for size in range(0, len(blob), 5):
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(blob[:size], model=model)


def test_damage_of_the_codec_that_a_file_carries_is_an_error() -> None:
    blob = GOLDEN.read_bytes()
    for position in range(0, len(blob), 97):
        damaged = bytearray(blob)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(parvae.CorruptFileError):
            parvae.decompress(bytes(damaged))


def test_whole_blocks_are_saved_from_a_file_that_is_cut_off(model: Any) -> None:
    rows = measured(1_000, seed=8)
    blob = parvae.compress(rows, model=model, block_rows=250)
    found = parvae.decompress(blob[: len(blob) * 3 // 4], model=model, salvage=True)
    num_rows = len(found["size"])
    assert num_rows in (500, 750)
    assert_same_rows(found, {name: column[:num_rows] for name, column in rows.items()})


def test_the_golden_file_decodes_for_ever() -> None:
    assert_same_rows(parvae.decompress(GOLDEN.read_bytes()), measured(400, seed=9))


def test_the_commands_from_the_checkpoint_to_the_rows(
    mixed_run: Path, mixed_table: pa.Table, mixed_bundle: Path, tmp_path: Path
) -> None:
    data, bundle, packed = tmp_path / "rows.parquet", tmp_path / "model.vae", tmp_path / "rows.vaez"
    pq.write_table(mixed_table, data)

    def run(*arguments: object) -> dict[str, Any]:
        done = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        result: dict[str, Any] = json.loads(done.output)
        return result

    exported = run("export", mixed_run / "ckpt.pt", "-o", bundle, "--codec", data)
    assert exported["codec_num_rows"] == mixed_table.num_rows
    assert run("info", bundle)["codec"] == f"{exported['codec_num_columns']} columns"
    assert run("selftest", bundle)["passed"]
    figures = run("compress", data, "-o", packed, "--model", bundle, "--verify")
    assert figures["verified"]
    assert figures["compressed_bytes"] < run("compress", data, "-o", tmp_path / "alone.vaez")["compressed_bytes"]
    described = run("info", packed)
    assert (described["format"], described["carries_codec"]) == (4, False)
    run("decompress", packed, "-o", tmp_path / "again.parquet", "--model", bundle)
    assert pq.read_table(tmp_path / "again.parquet").equals(mixed_table)
    failed = CliRunner().invoke(command, ["decompress", str(packed), "-o", str(tmp_path / "no.parquet")])
    assert failed.exit_code == 1
    assert "of a model; give that model.vae with --model" in failed.output
    assert not (tmp_path / "no.parquet").exists()
    run("compress", data, "-o", packed, "--model", bundle, "--carry-model")
    run("decompress", packed, "-o", tmp_path / "again.parquet")
    assert pq.read_table(tmp_path / "again.parquet").equals(mixed_table)

    model = parvae.load(bundle)
    assert model.decompress(model.compress(mixed_table)).equals(mixed_table)
    assert model.model_id == parvae.load(mixed_bundle).model_id
    with pytest.raises(parvae.BundleError, match="has no codec; export it with `vae export"):
        parvae.load(mixed_bundle).compress(mixed_table)


def bounds_of(blob: bytes) -> dict[str, Bound]:
    head = Reader(io.BytesIO(blob)).head
    return {column["name"]: Bound.parse(column["bound"]) for column in head["columns"]}
