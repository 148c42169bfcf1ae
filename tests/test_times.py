"""Dates, times and durations: read as seconds, and given back in the type they came in."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import export_bundle, train_small

import parvae
from parvae.arrow import to_array
from parvae.errors import DataError, SettingError
from parvae.rows import columns_of, read_inputs, rows_from_outputs
from parvae.schema import NumericFacts, Role, Schema
from parvae.times import numpy_from_seconds, seconds_from_numpy, ticks_from_seconds
from parvae_pipeline.reader import encode
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import statistics_of
from parvae_pipeline.time_block import TimestampBlock

START = datetime.datetime(2021, 3, 4, 5, 6, 7, 250_000)
NUM_ROWS = 60
MOMENTS = [START + datetime.timedelta(hours=7.5 * index) for index in range(NUM_ROWS)]
KINDS: dict[str, pa.Array] = {
    "date32": pa.array([moment.date() for moment in MOMENTS], pa.date32()),
    "date64": pa.array([moment.date() for moment in MOMENTS], pa.date64()),
    "seconds": pa.array(MOMENTS, pa.timestamp("s")),
    "microseconds": pa.array(MOMENTS, pa.timestamp("us")),
    "nanoseconds": pa.array(MOMENTS, pa.timestamp("ns")),
    "zoned": pa.array(MOMENTS, pa.timestamp("us")).cast(pa.timestamp("us", tz="Europe/Rome")),
    "duration": pa.array([moment - START for moment in MOMENTS], pa.duration("ms")),
    "time32": pa.array([moment.time() for moment in MOMENTS], pa.time32("ms")),
    "time64": pa.array([moment.time() for moment in MOMENTS], pa.time64("us")),
}


def schema_of(table: pa.Table) -> Schema:
    return infer_schema(statistics_of(table), overrides={}, label=None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_comes_back_as_it_went_in(kind: str) -> None:
    table = pa.table({"t": KINDS[kind]}).set_column(
        0, "t", pa.array([None, *KINDS[kind][1:].to_pylist()], KINDS[kind].type)
    )
    schema = schema_of(table)
    assert schema["t"].role is (Role.NUMERIC if kind in ("duration", "time32", "time64") else Role.TIMESTAMP)
    assert Schema.from_json(schema.to_json()) == schema
    inputs, _ = read_inputs(schema, table)
    columns = rows_from_outputs(schema, inputs)
    assert to_array(schema["t"], columns["t"]).equals(table["t"].combine_chunks())


@pytest.mark.parametrize("kind", ["seconds", "microseconds", "duration", "date32"])
def test_numpy_pandas_polars_and_objects_read_like_arrow(kind: str) -> None:
    table = pa.table({"t": KINDS[kind]})
    schema = schema_of(table)
    wanted = encode(schema, table)
    for rows in ({"t": KINDS[kind].to_numpy(zero_copy_only=False)}, {"t": KINDS[kind].to_pylist()}):
        inputs, _ = read_inputs(schema, rows)
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, wanted[name])
    frames: list[Any] = [polars.from_arrow(table)]
    if kind != "date32":  # pandas holds dates as objects
        frames.append(pd.DataFrame({"t": KINDS[kind].to_pandas()}))
    for frame in frames:
        inputs, _ = read_inputs(schema, frame)
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, wanted[name])


def test_zones_are_read_in_utc() -> None:
    utc, rome = (
        schema_of(pa.table({"t": KINDS[kind]}))["t"].facts_as(NumericFacts) for kind in ("microseconds", "zoned")
    )
    assert (utc.minimum, utc.maximum) == (rome.minimum, rome.maximum)


def test_nat_is_null_both_ways() -> None:
    times = np.array(["2021-01-01T00:00:01", "NaT"], "M8[s]")
    seconds = seconds_from_numpy(times)
    assert seconds[0] == 1_609_459_201.0
    assert np.isnan(seconds[1])
    again = numpy_from_seconds(seconds, "timestamp[s]", "M")
    assert again[0] == times[0]
    assert np.isnat(again[1])


def test_a_microsecond_survives_float64() -> None:
    moment = np.array(["2150-06-07T08:09:10.123456"], "M8[us]")
    assert numpy_from_seconds(seconds_from_numpy(moment), "timestamp[us]", "M")[0] == moment[0]


def test_days_before_1970_are_those_that_the_second_lies_in() -> None:
    assert ticks_from_seconds(np.array([-1.0, 0.0, 86_399.0]), "D").tolist() == [-1, 0, 0]


def test_a_retyped_timestamp_is_refused_with_the_remedy() -> None:
    schema = schema_of(pa.table({"t": KINDS["seconds"]}))
    with pytest.raises(DataError, match=r"column 't' is int64.*cast it to timestamp\[s\]"):
        read_inputs(schema, {"t": np.arange(3)})
    duration = schema_of(pa.table({"t": KINDS["duration"]}))
    with pytest.raises(DataError, match="cast it to duration"):
        columns_of(pa.table({"t": [1, 2]})).numbers(duration["t"])


def test_the_encoder_sees_day_week_and_year_and_finite_numbers_only() -> None:
    schema = schema_of(pa.table({"t": KINDS["seconds"]}))
    block = TimestampBlock(schema.inputs[0], NUM_ROWS)
    noon = 43_200.0 + 86_400.0 * 20_000
    raw = torch.tensor([[noon], [noon + 7 * 86_400.0], [float("nan")], [1e300]], dtype=torch.float64)
    features = block.features(raw)
    assert features.shape == (4, block.num_features)
    assert bool(torch.isfinite(features).all())
    torch.testing.assert_close(features[0, 1:5], features[1, 1:5], rtol=0.0, atol=1e-4)
    assert features[0, 2].item() == pytest.approx(-1.0, abs=1e-5)  # the cosine of noon
    assert features[2].tolist() == [0.0] * block.num_features


def test_a_date_out_of_range_scores_higher_and_samples_are_dates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    moments = np.datetime64("2024-01-01T00:00:00", "s") + rng.integers(0, 90 * 86_400, 400)
    table = pa.table({"when": pa.array(moments), "took": pa.array(rng.integers(0, 9_000, 400).astype("m8[ms]"))})
    pq.write_table(table, tmp_path / "a.parquet")
    vae = parvae.load(export_bundle(train_small(tmp_path / "a.parquet", tmp_path / "run", label=None, max_steps=80)))
    late = {"when": np.array(["2024-02-01", "2031-02-01"], "M8[s]"), "took": np.array([3_000, 3_000], "m8[ms]")}
    scores = vae.score(late)
    assert scores.nats[1] > scores.nats[0] + 3.0
    fresh = vae.sample(20)
    assert fresh["when"].dtype == np.dtype("M8[ms]")  # Parquet has no timestamp in seconds
    assert fresh["took"].dtype == np.dtype("m8[ms]")
    assert moments.min() <= fresh["when"].min() <= fresh["when"].max() <= moments.max()
    assert vae.reconstruct(table).schema.equals(table.schema)


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        (["1970-01-02", "1970-01-03"], [86_400.0, 172_800.0]),
        (["1970-01-01T00:00:10", "1970-01-01 00:00:20.25"], [10.0, 20.25]),
        (["1970-01-01T01:00:10+01:00", "1970-01-01T00:00:20Z"], [10.0, 20.0]),
    ],
)
def test_text_that_holds_dates_is_a_timestamp(texts: list[str], seconds: list[float]) -> None:
    table = pa.table({"t": [*(texts * 30), None]})
    schema = schema_of(table)
    assert schema["t"].role is Role.TIMESTAMP
    assert schema["t"].arrow_type == "string"
    assert "text that holds dates" in schema["t"].reason
    assert schema["t"].num_nulls == 1
    kinds: list[Any] = [table, table.to_pydict(), pa.table({"t": table["t"].dictionary_encode()}), table.to_pandas()]
    for rows in kinds:
        inputs, _ = read_inputs(schema, rows)
        assert inputs["timestamp"][:2, 0].tolist() == seconds
        assert np.isnan(inputs["timestamp"][-1, 0])
    again = to_array(schema["t"], rows_from_outputs(schema, inputs)["t"])
    assert again.type == pa.string()
    np.testing.assert_array_equal(read_inputs(schema, pa.table({"t": again}))[0]["timestamp"], inputs["timestamp"])


def test_text_keeps_its_time_of_day_where_the_step_between_times_is_not_known() -> None:
    for texts in (["2024-01-01T10:30:00", "2024-01-02T11:00:00"], ["2024-01-01", "2024-01-02"]):
        table = pa.table({"t": texts * 20})
        schema = infer_schema(statistics_of(table), overrides={}, label=None, with_shapes=False)
        assert schema["t"].facts_as(NumericFacts).resolution == 0.0
        inputs, _ = read_inputs(schema, table)
        assert rows_from_outputs(schema, inputs)["t"][:2].tolist() == texts


def test_a_timestamp_may_come_for_text_but_a_number_may_not() -> None:
    schema = schema_of(pa.table({"t": [f"2024-01-{day:02}" for day in range(1, 31)]}))
    inputs, _ = read_inputs(schema, {"t": np.array(["2024-01-02", "NaT"], "M8[s]")})
    assert inputs["timestamp"][0, 0] == 1_704_153_600.0
    with pytest.raises(DataError, match="column 't' is int64, but the model was trained on string"):
        read_inputs(schema, {"t": np.arange(2)})


def test_a_few_words_among_dates_are_null_and_many_make_a_category() -> None:
    dates = [f"2024-01-{day:02}" for day in range(1, 29)] * 4
    few = schema_of(pa.table({"t": [*dates, "unknown"]}))["t"]
    assert (few.role, few.num_nulls) == (Role.TIMESTAMP, 1)
    assert "1 that are no dates read as null" in few.reason
    many = schema_of(pa.table({"t": [*dates, *dates, *["unknown"] * 20]}))["t"]
    assert many.role is Role.CATEGORY
    named = infer_schema(statistics_of(pa.table({"t": dates})), overrides={"t": "category"}, label=None)["t"]
    assert named.role is Role.CATEGORY
    with pytest.raises(SettingError, match="cannot be timestamp: that needs dates or timestamps"):
        infer_schema(statistics_of(pa.table({"t": ["a", "b"] * 20})), overrides={"t": "timestamp"}, label=None)


def test_pieces_of_a_file_agree_on_what_is_a_date() -> None:
    dates = statistics_of(pa.table({"t": ["2024-01-01", "2024-01-02"] * 20}))["t"]
    dates.merge(statistics_of(pa.table({"t": ["monday"] * 20}))["t"])
    assert not dates.are_dates
    assert not statistics_of(pa.table({"t": pa.array([None, None], pa.string())}))["t"].are_dates
