"""Small schemas, models and Parquet files that several tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from parvae.files import find_files
from parvae.rows import Arrays
from parvae.schema import (
    BooleanFacts,
    CategoryFacts,
    Column,
    ImageFacts,
    NumericFacts,
    Role,
    Schema,
    VectorFacts,
)
from parvae_pipeline.config import RunSettings
from parvae_pipeline.decode import UnitRows, read_split
from parvae_pipeline.model import Architecture
from parvae_pipeline.reader import encode
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.split import Split
from parvae_pipeline.statistics import statistics_of
from parvae_pipeline.units import plan_units


def numeric(
    name: str = "x",
    *,
    mean: float = 0.0,
    stddev: float = 1.0,
    minimum: float = -4.0,
    maximum: float = 4.0,
    resolution: float = 0.0,
    num_nulls: int = 0,
    arrow_type: str = "double",
) -> Column:
    facts = NumericFacts(mean=mean, stddev=stddev, minimum=minimum, maximum=maximum, resolution=resolution)
    return Column(name=name, role=Role.NUMERIC, arrow_type=arrow_type, reason="given", num_nulls=num_nulls, facts=facts)


def boolean(name: str = "flag", *, share_true: float = 0.5, num_nulls: int = 0) -> Column:
    facts = BooleanFacts(share_true=share_true)
    return Column(name=name, role=Role.BOOLEAN, arrow_type="bool", reason="given", num_nulls=num_nulls, facts=facts)


def category(
    name: str = "city", *, levels: tuple[str, ...] = ("a", "b", "c"), num_nulls: int = 0, num_unlisted: int = 0
) -> Column:
    facts = CategoryFacts(levels=levels, num_unlisted=num_unlisted)
    return Column(name=name, role=Role.CATEGORY, arrow_type="string", reason="given", num_nulls=num_nulls, facts=facts)


def vector(
    name: str = "v",
    *,
    size: int = 4,
    element: str = "float32",
    is_binary: bool = False,
    mean: float = 0.0,
    stddev: float = 1.0,
) -> Column:
    facts = VectorFacts(size=size, element=element, is_binary=is_binary, mean=mean, stddev=stddev)
    arrow_type = f"fixed_size_list<element: {'float' if element == 'float32' else element}>[{size}]"
    return Column(name=name, role=Role.VECTOR, arrow_type=arrow_type, reason="given", facts=facts)


def image(
    name: str = "pixels",
    *,
    height: int = 9,
    width: int = 7,
    channels: int = 1,
    mean: float = 90.0,
    stddev: float = 60.0,
) -> Column:
    facts = ImageFacts(height=height, width=width, channels=channels, mean=mean, stddev=stddev)
    arrow_type = f"fixed_size_list<element: uint8>[{height * width * channels}]"
    return Column(name=name, role=Role.IMAGE, arrow_type=arrow_type, reason="given", facts=facts)


def schema_of(*columns: Column, num_rows: int = 100) -> Schema:
    return Schema(columns=columns, num_rows=num_rows)


def architecture(**choices: Any) -> Architecture:
    """A small one, with `choices` in place of its own."""
    small = {"network": "table", "prior": "normal", "latent_size": 3, "width": 16, "depth": 1, "channels": 4}
    return Architecture(**{**small, **choices})


def random_raw(schema: Schema, num_rows: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Raw tensors by block name: what the network takes."""
    generator = torch.Generator().manual_seed(seed)
    raw: dict[str, Tensor] = {}
    for block in schema.inputs:
        shape = (num_rows, *block.row_shape)
        if block.role is Role.CATEGORY:
            levels = [len(column.facts_as(CategoryFacts).levels) for column in block.columns]
            codes = [torch.randint(0, 2 + count, (num_rows,), generator=generator) for count in levels]
            raw[block.name] = torch.stack(codes, dim=1)
        elif block.role is Role.BOOLEAN:
            raw[block.name] = torch.randint(0, 2, shape, generator=generator).float()
        elif block.dtype == "uint8":
            facts = block.columns[0].facts
            above = 2 if isinstance(facts, VectorFacts) and facts.is_binary else 256
            raw[block.name] = torch.randint(0, above, shape, generator=generator).to(torch.uint8)
        else:
            raw[block.name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(
                getattr(torch, block.dtype)
            )
    return raw


def people_table(num_rows: int = 240, *, seed: int = 0) -> pa.Table:
    """Numbers with nulls, a category that depends on one of them, true and false, and a vector."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=num_rows)
    height = 170.0 + 10.0 * latent + rng.normal(size=num_rows)
    weight = 70.0 + 8.0 * latent + 3.0 * rng.normal(size=num_rows)
    city = np.where(latent + 0.5 * rng.normal(size=num_rows) > 0, "north", "south")
    return pa.table(
        {
            "height": pa.array(height, mask=rng.random(num_rows) < 0.05),
            "weight": pa.array(weight),
            "city": pa.array(city.tolist()),
            "member": pa.array((rng.random(num_rows) < 0.3).tolist()),
            "embedding": list_array(rng.normal(size=(num_rows, 3)).astype(np.float32)),
        }
    )


def list_array(matrix: Any, element: pa.DataType | None = None) -> pa.FixedSizeListArray:
    """A (n, d) matrix as a column of fixed-size lists."""
    matrix = np.ascontiguousarray(matrix)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1), type=element), matrix.shape[1])


def write_parquet(path: Path, table: pa.Table, *, row_group_size: int | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def numbered_files(folder: Path, row_groups: Sequence[Sequence[int]]) -> list[str]:
    """One file for each list of row group sizes: "x" is the number of the row, "v" three times that as a vector."""
    paths, first = [], 0
    schema = pa.schema({"x": pa.float64(), "v": pa.list_(pa.float32(), 3)})
    for number, sizes in enumerate(row_groups):
        path = folder / f"{number:04d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, schema) as writer:
            for size in sizes:
                rows = np.arange(first, first + size, dtype=np.float64)
                vectors = np.repeat(rows.astype(np.float32)[:, None], 3, axis=1)
                writer.write_table(pa.table({"x": rows, "v": list_array(vectors)}, schema=schema))
                first += size
        paths.append(str(path))
    return paths


def read_rows(paths: Sequence[str], schema: Schema) -> Arrays:
    """All rows of some files as the network takes them, in the order of the files."""
    units = plan_units(find_files(paths))
    split = Split.of(units.total_rows, share=0.5, max_rows=units.total_rows, seed=0)
    training, held_out = read_split(UnitRows(units, schema, split))
    order = np.argsort(np.argsort(split.held_out(), kind="stable"))
    return {name: np.concatenate([rows, held_out[name]])[order] for name, rows in training.items()}


def quick_settings(path: str, *, data: Mapping[str, Any] | None = None, **train: Any) -> RunSettings:
    """Settings of a run that takes about a second on one thread."""
    document = {
        "data": {"paths": [path], "held_out_share": 0.2, **(data or {})},
        "model": {"latent_size": 2, "width": 8, "depth": 1},
        "train": {"seed": 1, "max_steps": 80, "batch_size": 32, "threads": 1, **train},
    }
    return RunSettings.from_mapping(document)


def encoded(table: pa.Table) -> tuple[Schema, Arrays]:
    """The schema of a table, and its rows as the network takes them."""
    schema = infer_schema(statistics_of(table), overrides={}, label=None)
    return schema, encode(schema, table)
