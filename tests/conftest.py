"""Bundles that many tests share: made once a session, small, on real digits and on a mixed table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mixed_rows import Rows, full_rows
from ray_head import ray_head

if TYPE_CHECKING:
    from trainers import Rows as Split

    from parvae import VAE
    from parvae.vaez.codec import Codec
    from parvae_pipeline.train import Result

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits.parquet"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where processes share the tests out, those of the cluster stay together, and the quick ones of a file: what they
    have in common is made once."""
    for item in items:
        fixtures: list[str] = getattr(item, "fixturenames", [])
        alone = item.nodeid if item.get_closest_marker("slow") else item.path.name
        item.add_marker(pytest.mark.xdist_group("cluster" if "cluster" in fixtures else alone))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mixed_table() -> pa.Table:
    """Every role and kind of null, with columns that depend on each other."""
    generator = np.random.default_rng(0)
    num_rows = 400
    factor = generator.normal(size=num_rows)
    age = np.clip(np.rint(40 + 12 * factor + 3 * generator.normal(size=num_rows)), 18, 90).astype(int)
    cities = np.array(["Roma", "Köln", "São Paulo"])[(factor > 0.5).astype(int) + (factor > -0.5).astype(int)]
    embedding = (factor[:, None] * np.array([1.0, -0.5, 0.2, 2.0]) + 0.1 * generator.normal(size=(num_rows, 4))).astype(
        "f4"
    )
    return pa.table(
        {
            "id": pa.array([f"row-{index}" for index in range(num_rows)]),
            "age": pa.array([None if index % 10 == 0 else int(value) for index, value in enumerate(age)], pa.int64()),
            "income": pa.array(30_000.0 + 9_000.0 * factor + 800.0 * generator.normal(size=num_rows)),
            "city": pa.array([None if index % 17 == 0 else str(city) for index, city in enumerate(cities)]),
            "code": pa.array(np.full(num_rows, 7), pa.int32()),
            "member": pa.array(factor > 0),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), 4),
            "target": pa.array((factor > 1).astype("i1")),
        }
    )


@pytest.fixture(scope="session")
def mixed_run(tmp_path_factory: pytest.TempPathFactory, mixed_table: pa.Table) -> Path:
    """The run folder of a model of `mixed_table`."""
    folder = tmp_path_factory.mktemp("mixed")
    pq.write_table(mixed_table, folder / "mixed.parquet")
    return train_small(folder / "mixed.parquet", folder / "run", label="target", max_steps=300)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a model of the digits."""
    return train_small(DIGITS, tmp_path_factory.mktemp("digits") / "run", label="digit", max_steps=200)


@pytest.fixture(scope="session")
def mixed_bundle(mixed_run: Path) -> Path:
    return export_bundle(mixed_run)


@pytest.fixture(scope="session")
def digits_bundle(digits_run: Path) -> Path:
    return export_bundle(digits_run)


@pytest.fixture(scope="session")
def owners_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of owners, too many to list, and of a weight that is 0 where their hash is even and 3 where it is odd."""
    from parvae_pipeline.hashing import murmur3

    folder = tmp_path_factory.mktemp("owners")
    owners = [f"owner {number % 1_000}" for number in range(4_000)]
    weight = 3.0 * (murmur3(owners) % 2) + 0.1 * np.random.default_rng(0).normal(size=4_000)
    pq.write_table(pa.table({"owner": owners, "weight": weight}), folder / "owners.parquet")
    return export_bundle(train_small(folder / "owners.parquet", folder / "run", label=None, max_steps=800))


@pytest.fixture(scope="session")
def people() -> Split:
    """Rows of `trainers.people_rows`. Tests must not change them."""
    from trainers import people_rows

    return people_rows()


@pytest.fixture(scope="session")
def vae(mixed_bundle: Path) -> VAE:
    """The model of the mixed table."""
    import parvae

    return parvae.load(mixed_bundle)


@pytest.fixture(scope="session")
def digits(digits_bundle: Path) -> VAE:
    """The model of the digits."""
    import parvae

    return parvae.load(digits_bundle)


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """The codec of `fitted_codecs`."""
    from fitted_codecs import fitted_codec

    return fitted_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="session")
def images() -> pa.Table:
    """The digits."""
    return pq.read_table(DIGITS)


@pytest.fixture(scope="session")
def rows(mixed_table: pa.Table) -> Rows:
    """Rows of the mixed table without nulls."""
    return full_rows(mixed_table, 40)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 240 people in three row groups."""
    from builders import people_table, write_parquet

    return write_parquet(tmp_path_factory.mktemp("data") / "people.parquet", people_table(240), row_group_size=100)


@pytest.fixture(scope="session")
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder and the result of a run on `data` that nobody stopped. Tests must not change it."""
    from builders import quick_settings

    from parvae_pipeline.train import train

    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, train(quick_settings(data), folder)


def train_small(data: Path, folder: Path, *, label: str | None, max_steps: int, **model: object) -> Path:
    """Train a small model in process."""
    from parvae_pipeline.config import RunSettings
    from parvae_pipeline.train import train

    document = {
        "data": {"paths": [str(data)], **({"label": label} if label else {})},
        "model": {"width": 32, **model},
        "train": {"max_steps": max_steps, "threads": 1, "batch_size": 64},
    }
    train(RunSettings.from_mapping(document), folder)
    return folder


def export_bundle(run: Path) -> Path:
    """Export the checkpoint of a run."""
    from parvae_export.export import export

    return export(run / "ckpt.pt").path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; a user's machine has none, and such tests are skipped there."""
    folder = Path(os.environ.get("PARVAE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set PARVAE_DATA to the folder that holds adult/, mnist/ and the others")
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray cluster of two CPUs with jobs server and token authentication: the environment of those who talk to it."""
    with ray_head(num_cpus=2) as environment:
        yield environment
