"""Run folders, bundles and outputs in a bucket, over HTTP, and behind URLs that pyarrow leaves to fsspec."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch
from builders import people_table
from click.testing import CliRunner

import parvae
from parvae.cli import vae
from parvae.errors import BundleError, DataError
from parvae.storage import Remote, place_of, write_whole
from parvae_pipeline.checkpoint import read_checkpoint
from parvae_pipeline.run_folder import RunFolder

STEPS = 1500
SETTINGS = (
    *("--set", f"train.max_steps={STEPS}", "--set", "train.batch_size=32", "--set", "train.threads=1"),
    *("--set", "train.checkpoint_every_s=0.2", "--set", "model.width=8", "--set", "model.latent_size=2"),
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket on a server that speaks S3 over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in found}
    os.environ.update(found)
    try:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        endpoint = {"scheme": "http", "endpoint_override": f"127.0.0.1:{port}"}
        pafs.S3FileSystem(allow_bucket_creation=True, **endpoint).create_dir("parvae-tests")
        yield "s3://parvae-tests"
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def upload(table: pa.Table, url: str) -> None:
    filesystem, path = pafs.FileSystem.from_uri(url)
    pq.write_table(table, path, filesystem=filesystem, row_group_size=100)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(vae, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def children(url: str) -> set[str]:
    place = place_of(url)
    assert isinstance(place, Remote)
    found = place.filesystem.get_file_info(pafs.FileSelector(place.path, recursive=True))
    return {info.path.removeprefix(place.path + "/") for info in found if info.type == pafs.FileType.File}


@pytest.mark.slow
def test_training_killed_and_resumed_in_a_bucket_equals_training_that_was_not(bucket: str, tmp_path: Path) -> None:
    upload(people_table(240), f"{bucket}/data/people.parquet")
    arguments = ["train", f"{bucket}/data", "-o", f"{bucket}/runs/one", *SETTINGS]
    process = subprocess.Popen([sys.executable, "-m", "parvae", *arguments], stdout=subprocess.DEVNULL)
    state = place_of(f"{bucket}/runs/one/resume/state.pt")
    deadline_s = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    process.kill()
    process.wait()
    interrupted = RunFolder(f"{bucket}/runs/one").load_state()
    assert interrupted is not None
    assert 0 < interrupted["progress"]["step"] < STEPS
    run("train", "-o", f"{bucket}/runs/one", "--resume")
    assert children(f"{bucket}/runs/one") == {
        *("run.toml", "metrics.jsonl", "ckpt.pt"),
        *("resume/state.pt", "resume/plan.parquet"),
    }
    records = RunFolder(f"{bucket}/runs/one").metrics()
    assert {"event": "resume", "step": interrupted["progress"]["step"]} in records
    assert records[-1]["step"] == STEPS

    run("train", f"{bucket}/data", "-o", str(tmp_path / "whole"), *SETTINGS)
    whole = read_checkpoint(tmp_path / "whole" / "ckpt.pt").model.state_dict()
    resumed = read_checkpoint(f"{bucket}/runs/one/ckpt.pt").model.state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name].double(), value.double(), rtol=0.0, atol=1e-6)

    run("export", f"{bucket}/runs/one/ckpt.pt")
    run("export", str(tmp_path / "whole" / "ckpt.pt"))
    assert parvae.load(f"{bucket}/runs/one/model.vae").model_id == parvae.load(tmp_path / "whole/model.vae").model_id

    scoring = ["score", f"{bucket}/runs/one/model.vae", f"{bucket}/data", "-o", f"{bucket}/scores", "--alpha", "0.1"]
    assert json.loads(run(*scoring, "--json"))["rows"] == 240
    run("score", str(tmp_path / "whole/model.vae"), f"{bucket}/data", "-o", str(tmp_path / "scores"), "--alpha", "0.1")
    content = place_of(f"{bucket}/scores/people.parquet").read_bytes()
    assert content == (tmp_path / "scores" / "people.parquet").read_bytes()
    assert json.loads(run(*scoring, "--json"))["already_done"] == 1
    assert children(f"{bucket}/scores") == {"people.parquet"}


def test_the_endpoint_may_stand_in_the_url(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    place = place_of(f"{bucket}/notes?scheme=http&endpoint_override={endpoint}") / "deep" / "a.txt"
    write_whole(place, b"1")
    assert str(place) == f"{bucket}/notes/deep/a.txt?scheme=http&endpoint_override={endpoint}"
    assert place_of(str(place)).read_bytes() == b"1"


def test_a_bad_file_in_a_bucket_is_listed_beside_the_outputs(
    bucket: str, mixed_bundle: Path, mixed_table: pa.Table
) -> None:
    upload(mixed_table, f"{bucket}/mixed/good.parquet")
    write_whole(place_of(f"{bucket}/mixed/bad.parquet"), b"no parquet")
    arguments = ["score", str(mixed_bundle), f"{bucket}/mixed", "-o", f"{bucket}/listed", "--alpha", "0.1"]
    assert CliRunner().invoke(vae, arguments).exit_code == 1
    assert children(f"{bucket}/listed") == {"good.parquet", "_errors.jsonl"}
    place_of(f"{bucket}/mixed/bad.parquet").unlink()
    run(*arguments)
    assert children(f"{bucket}/listed") == {"good.parquet"}


def test_what_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(BundleError, match=r"s3://parvae-tests/none/model\.vae cannot be opened"):
        parvae.load(f"{bucket}/none/model.vae")
    with pytest.raises(BundleError, match=r"s3://parvae-tests/none/ckpt\.pt cannot be opened"):
        read_checkpoint(f"{bucket}/none/ckpt.pt")
    with pytest.raises(DataError, match=r"nowhere://bucket/x: no filesystem"):
        place_of("nowhere://bucket/x")


def test_a_bucket_that_does_not_exist_is_one_sentence(bucket: str, mixed_bundle: Path, tmp_path: Path) -> None:
    pq.write_table(people_table(10), tmp_path / "in.parquet")
    done = CliRunner().invoke(vae, ["train", str(tmp_path / "in.parquet"), "-o", "s3://no-such-bucket/run"])
    assert done.exit_code == 1
    assert "no-such-bucket" in done.output or "10 rows" in done.output
    assert "Traceback" not in done.output


def test_what_pyarrow_leaves_to_fsspec_appears_whole(mixed_bundle: Path) -> None:
    place = place_of("memory://folder/deep/model.vae")
    assert isinstance(place, Remote)
    assert not place.exists()
    for content in (b"first", mixed_bundle.read_bytes()):
        write_whole(place, content)
        assert place.read_bytes() == content
    assert place.is_file()
    assert place.parent.is_dir()
    assert parvae.load(str(place)).model_id == parvae.load(mixed_bundle).model_id
    assert children("memory://folder") == {"deep/model.vae"}
    place.unlink()
    place.unlink(missing_ok=True)
    assert not place.exists()


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    assert place_of(f"file://{tmp_path}/x") == tmp_path / "x"
    assert place_of(str(tmp_path)) == tmp_path
