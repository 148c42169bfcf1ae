"""The loaded model: shapes and types, what scores mean, chunks, seeds, threads, processes, and silence."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from mixed_rows import full_rows, repeated
from numpy.typing import NDArray

import parvae
from parvae import VAE, DataError, Role, Scores, SettingError
from parvae.model import LATENT_PART
from parvae.scores import Calibration

Rows = dict[str, NDArray[Any]]
DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits.parquet"
MORE_THAN_ONE_CHUNK = 1_100


@pytest.fixture(scope="session")
def vae(mixed_bundle: Path) -> VAE:
    return parvae.load(mixed_bundle)


@pytest.fixture(scope="session")
def digits(digits_bundle: Path) -> VAE:
    return parvae.load(digits_bundle)


@pytest.fixture(scope="session")
def rows(mixed_table: pa.Table) -> Rows:
    """Rows of the mixed table without nulls."""
    return full_rows(mixed_table, 40)


@pytest.fixture(scope="session")
def images() -> pa.Table:
    return pq.read_table(DIGITS)


def select(rows: Rows, chosen: Any) -> Rows:
    return {name: array[chosen] for name, array in rows.items()}


def assert_same_rows(found: Rows, wanted: Rows) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# Shapes and types


def test_codes_are_float32_of_latent_size(vae: VAE, rows: Rows) -> None:
    codes = vae.encode(rows)
    assert (codes.shape, codes.dtype) == ((40, vae.latent_size), np.dtype(np.float32))
    assert np.all(np.isfinite(codes))


def test_decoded_columns_have_the_types_of_the_data_set(vae: VAE, rows: Rows) -> None:
    found = vae.decode(vae.encode(rows))
    assert list(found) == [column.name for column in vae.schema if column.is_modelled]
    assert {name: (array.dtype.kind, array.shape) for name, array in found.items()} == {
        "age": ("i", (40,)),
        "income": ("f", (40,)),
        "city": ("O", (40,)),
        "code": ("O", (40,)),
        "member": ("b", (40,)),
        "embedding": ("f", (40, 4)),
    }
    assert set(found["code"].tolist()) == {7}


def test_images_are_decoded_as_pixels(digits: VAE, images: pa.Table) -> None:
    found = digits.decode(digits.encode(images.slice(0, 5)))
    assert list(found) == ["image"]
    assert (found["image"].shape, found["image"].dtype) == ((5, 8, 8, 1), np.dtype(np.uint8))


def test_codes_may_come_as_a_list(vae: VAE) -> None:
    zero = [[0.0] * vae.latent_size]
    assert_same_rows(vae.decode(zero), vae.decode(np.zeros((1, vae.latent_size))))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (2, 1), (0,)])
def test_codes_of_another_shape_are_refused(vae: VAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="codes have shape") as caught:
        vae.decode(np.zeros(shape))
    assert f"needs (rows, {vae.latent_size})" in str(caught.value)


def test_codes_that_are_no_numbers_are_refused(vae: VAE) -> None:
    with pytest.raises(DataError, match="codes"):
        vae.decode([["a"] * vae.latent_size])


def test_reconstruction_is_encode_then_decode(vae: VAE, rows: Rows) -> None:
    again = vae.reconstruct(rows)
    assert list(again) == list(rows)
    assert_same_rows({name: again[name] for name in vae.decode(vae.encode(rows))}, vae.decode(vae.encode(rows)))
    for name in ("id", "target"):
        np.testing.assert_array_equal(again[name], rows[name])


def test_scores_have_one_number_a_row_and_one_a_part(vae: VAE, rows: Rows) -> None:
    scores = vae.score(rows)
    assert len(scores) == 40
    assert (scores.nats.shape, scores.nats.dtype) == ((40,), np.dtype(np.float32))
    assert scores.contributions.shape == (40, len(vae.parts))
    assert (scores.p_value.shape, scores.p_value.dtype) == ((40,), np.dtype(np.float64))
    assert (scores.is_anomaly(0.5).shape, scores.is_anomaly(0.5).dtype) == ((40,), np.dtype(bool))
    assert_same_rows(scores.expected, vae.reconstruct(rows))


def test_expected_rows_are_worked_out_once(vae: VAE, rows: Rows) -> None:
    scores = vae.score(rows)
    assert scores.expected is scores.expected


def test_contributions_sum_to_the_score_and_are_named(vae: VAE, rows: Rows) -> None:
    scores = vae.score(rows)
    np.testing.assert_allclose(scores.contributions.sum(axis=1), scores.nats, rtol=1e-5, atol=1e-4)
    assert scores.parts == vae.parts == (*(column.name for column in vae.schema.modelled), LATENT_PART)
    assert np.all(scores.contributions[:, -1] >= 0), "a KL divergence is not negative"


def test_a_contribution_belongs_to_the_column_that_it_names(vae: VAE, rows: Rows) -> None:
    base = vae.score(rows)
    broken = {
        "age": np.full(40, 10**6),
        "income": np.full(40, 1e9),
        "city": np.full(40, "(no such place)", dtype=object),
        "code": np.full(40, 8),
        "embedding": np.full((40, 4), 1e3, np.float32),
    }
    for name, values in broken.items():
        change = vae.score({**rows, name: values}).contributions - base.contributions
        assert vae.parts[int(np.argmax(change.mean(axis=0)))] == name


@pytest.mark.parametrize("fixture", ["vae", "digits"])
def test_no_row_gives_empty_results(fixture: str, request: pytest.FixtureRequest, rows: Rows, images: pa.Table) -> None:
    model: VAE = request.getfixturevalue(fixture)
    none: Any = select(rows, slice(0)) if fixture == "vae" else images.slice(0, 0)
    assert model.encode(none).shape == (0, model.latent_size)
    scores = model.score(none)
    assert scores.contributions.shape == (0, len(model.parts))
    assert scores.nats.shape == scores.p_value.shape == scores.is_anomaly(0.5).shape == (0,)
    again = model.reconstruct(none)
    assert (len(again["age"]) if fixture == "vae" else again.num_rows) == 0
    assert all(len(array) == 0 for array in model.decode(np.zeros((0, model.latent_size))).values())
    assert all(len(array) == 0 for array in model.sample(0).values())


def test_inputs_are_left_as_they_were(vae: VAE, rows: Rows) -> None:
    before = {name: array.copy() for name, array in rows.items()}
    vae.score(rows)
    vae.reconstruct(rows)
    assert_same_rows(rows, before)


# What scores mean


@pytest.mark.parametrize("name", ["city", "code"])
def test_an_unseen_category_raises_every_score(vae: VAE, rows: Rows, name: str) -> None:
    unseen: Any = "(no such place)" if name == "city" else 8
    changed = vae.score({**rows, name: np.full(40, unseen)})
    assert np.all(changed.nats > vae.score(rows).nats)


@pytest.mark.parametrize("name", ["income", "code", "member"])
def test_a_null_where_training_had_none_raises_every_score(vae: VAE, rows: Rows, name: str) -> None:
    assert vae.schema[name].num_nulls == 0
    changed = vae.score({**rows, name: np.full(40, None)})
    assert np.all(changed.nats > vae.score(rows).nats)


def test_infinite_numbers_score_like_nulls(vae: VAE, rows: Rows) -> None:
    nulls, infinite = (vae.score({**rows, "income": np.full(40, value)}).nats for value in (np.nan, np.inf))
    np.testing.assert_array_equal(nulls, infinite)
    assert np.all(np.isfinite(nulls))


@pytest.mark.parametrize("value", [1e300, -1e300, 3.4e38])
def test_the_most_extreme_numbers_have_a_finite_and_high_score(vae: VAE, rows: Rows, value: float) -> None:
    changed = vae.score({**rows, "income": np.full(40, value)}).nats
    assert np.all(np.isfinite(changed))
    assert np.all(changed > vae.score(rows).nats + 100)


def test_an_embedding_of_nan_scores_high(vae: VAE, rows: Rows) -> None:
    broken = np.full((40, 4), np.nan, np.float32)
    assert np.all(vae.score({**rows, "embedding": broken}).nats > vae.score(rows).nats + 100)


def test_keys_and_labels_do_not_change_the_score(vae: VAE, rows: Rows) -> None:
    without = {name: array for name, array in rows.items() if vae.schema[name].is_modelled}
    assert len(without) < len(rows)
    np.testing.assert_array_equal(vae.score(without).nats, vae.score(rows).nats)


# p-values


def scores_of(nats: Any, calibration: Any) -> Scores:
    values = np.array(nats, np.float32)
    table = Calibration(scores=np.sort(np.array(calibration, np.float32)), from_real_rows=True)
    return Scores(nats=values, contributions=values[:, None], parts=("x",), calibration=table, expect=lambda: None)


def test_the_p_value_is_the_conformal_formula(vae: VAE, rows: Rows) -> None:
    scores = vae.score(rows)
    held_out = np.array(vae.manifest["calibration"]["scores"], np.float32)
    wanted = [(1 + int((held_out >= score).sum())) / (1 + len(held_out)) for score in scores.nats]
    np.testing.assert_allclose(scores.p_value, wanted, rtol=1e-15)


def test_p_values_count_ties_as_at_least_as_strange() -> None:
    scores = scores_of([0.5, 1.0, 2.0, 2.5, 3.0, np.inf, np.nan], [1, 2, 2, 3])
    np.testing.assert_allclose(scores.p_value, np.array([5, 5, 4, 2, 2, 1, 1]) / 5)


def test_held_out_rows_are_flagged_no_more_often_than_alpha(vae: VAE) -> None:
    held_out = vae.manifest["calibration"]["scores"]
    flagged = scores_of(held_out, held_out).is_anomaly(0.1)
    assert 0 < flagged.mean() <= 0.1


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_an_alpha_outside_of_0_and_1_is_refused(alpha: float) -> None:
    with pytest.raises(SettingError, match=r"alpha is .*; it must lie between 0 and 1, for example 0.01") as caught:
        scores_of([1.0], range(1_000)).is_anomaly(alpha)
    assert repr(alpha) in str(caught.value)


def test_an_alpha_that_the_calibration_cannot_support_is_refused_with_the_remedy() -> None:
    with pytest.raises(SettingError) as caught:
        scores_of([1.0], range(10)).is_anomaly(0.05)
    message = str(caught.value)
    assert "alpha is 0.05, but 10 calibration rows support none below 0.091" in message
    assert "use a larger alpha, or train with more rows held out" in message


def test_the_smallest_alpha_is_supported_whatever_the_number_of_calibration_rows() -> None:
    refused = []
    for num_rows in range(1, 500):
        try:
            flagged = scores_of([num_rows + 1.0], range(num_rows)).is_anomaly(1 / (1 + num_rows))
        except SettingError:
            refused.append(num_rows)
        else:
            assert flagged.tolist() == [True]
    assert refused == []


def test_a_model_supports_the_smallest_alpha_that_it_states(vae: VAE, rows: Rows) -> None:
    strange = vae.score({**rows, "income": np.full(40, 1e300)})
    assert np.all(strange.is_anomaly(vae.smallest_alpha))
    with pytest.raises(SettingError):
        strange.is_anomaly(vae.smallest_alpha * 0.99)


def test_a_calibration_table_survives_the_manifest(vae: VAE) -> None:
    document = vae.manifest["calibration"]
    table = Calibration.from_json(document)
    assert table.to_json() == document
    assert np.all(np.diff(table.scores) >= 0)


# Chunks


def test_many_mixed_rows_score_as_they_do_one_by_one(vae: VAE, rows: Rows) -> None:
    many = repeated(rows, MORE_THAN_ONE_CHUNK)
    codes, scores = vae.encode(many), vae.score(many)
    single = [select(rows, slice(index, index + 1)) for index in range(40)]
    alone_codes = np.concatenate([vae.encode(row) for row in single])
    alone_nats = np.concatenate([vae.score(row).nats for row in single])
    alone_parts = np.concatenate([vae.score(row).contributions for row in single])
    index = np.arange(MORE_THAN_ONE_CHUNK) % 40
    np.testing.assert_allclose(codes, alone_codes[index], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.nats, alone_nats[index], rtol=1e-4)
    np.testing.assert_allclose(scores.contributions, alone_parts[index], rtol=1e-4, atol=1e-4)


def test_many_images_score_as_they_do_one_by_one(digits: VAE, images: pa.Table) -> None:
    many = images.slice(0, MORE_THAN_ONE_CHUNK)
    scores, codes = digits.score(many).nats, digits.encode(many)
    for first in (0, 500, 1_023, 1_024, MORE_THAN_ONE_CHUNK - 1):
        row = images.slice(first, 1)
        np.testing.assert_allclose(scores[first], digits.score(row).nats[0], rtol=1e-4)
        np.testing.assert_allclose(codes[first], digits.encode(row)[0], rtol=1e-4, atol=1e-5)


def test_many_codes_are_decoded_as_they_are_one_by_one(vae: VAE) -> None:
    codes = np.random.default_rng(0).normal(size=(MORE_THAN_ONE_CHUNK, vae.latent_size))
    many = vae.decode(codes)
    for index in (0, 1_023, 1_024, MORE_THAN_ONE_CHUNK - 1):
        alone = vae.decode(codes[index : index + 1])
        np.testing.assert_allclose(many["embedding"][index], alone["embedding"][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(many["income"][index], alone["income"][0], rtol=1e-4)


# Samples


def test_the_same_seed_gives_the_same_rows(vae: VAE, digits: VAE) -> None:
    for model in (vae, digits):
        assert_same_rows(model.sample(30, seed=5), model.sample(30, seed=5))
    assert_same_rows(vae.sample(30), vae.sample(30, seed=0))


def test_another_seed_gives_other_rows(vae: VAE, digits: VAE) -> None:
    one, other = vae.sample(30, seed=0), vae.sample(30, seed=1)
    assert not np.any(one["embedding"] == other["embedding"])
    assert not np.array_equal(digits.sample(30, seed=0)["image"], digits.sample(30, seed=1)["image"])


def test_a_sample_of_many_rows_starts_with_the_sample_of_few(vae: VAE) -> None:
    many, few = vae.sample(MORE_THAN_ONE_CHUNK + 1_000, seed=3), vae.sample(50, seed=3)
    np.testing.assert_allclose(many["embedding"][:50], few["embedding"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(many["income"][:50], few["income"], rtol=1e-4)
    assert np.mean(many["city"][:50] == few["city"]) > 0.95


def test_a_chunk_of_a_sample_equals_that_part_of_the_whole(vae: VAE) -> None:
    whole = vae.sample_noise(100, seed=3)
    parts = [vae.sample_noise(size, seed=3, first_row=first) for first, size in ((0, 30), (30, 70))]
    for name, noise in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), noise)


def test_the_noise_of_code_and_columns_is_not_shared(vae: VAE) -> None:
    noise = vae.sample_noise(200, seed=3)
    together = np.concatenate([noise["z_noise"], noise["noise"]], axis=1)
    correlation = np.corrcoef(together.T) - np.eye(together.shape[1])
    assert np.max(np.abs(correlation)) < 0.5


def test_samples_hold_the_modelled_columns_inside_the_range_of_the_data(vae: VAE, mixed_table: pa.Table) -> None:
    fresh = vae.sample(500, seed=1)
    assert list(fresh) == [column.name for column in vae.schema if column.is_modelled]
    income = np.asarray(mixed_table["income"])
    assert income.min() <= fresh["income"].min() < fresh["income"].max() <= income.max()
    assert set(fresh["city"].tolist()) <= {*mixed_table["city"].to_pylist(), None}
    assert set(fresh["code"].tolist()) == {7}
    assert set(fresh["member"].tolist()) == {True, False}


def test_samples_can_be_scored(vae: VAE) -> None:
    assert np.all(np.isfinite(vae.score(vae.sample(20)).nats))


def test_pixel_noise_changes_images_and_nothing_else(vae: VAE, digits: VAE) -> None:
    expected, drawn = digits.sample(10, seed=2)["image"], digits.sample(10, seed=2, pixel_noise=True)["image"]
    assert (drawn.shape, drawn.dtype) == (expected.shape, expected.dtype)
    assert np.mean(expected != drawn) > 0.5
    assert_same_rows(vae.sample(10, seed=2), vae.sample(10, seed=2, pixel_noise=True))


@pytest.mark.parametrize("num_rows", [-1, 1.0, "3", None])
def test_a_wrong_number_of_rows_is_refused(vae: VAE, num_rows: Any) -> None:
    with pytest.raises(SettingError, match=r"num_rows is .*; it must be a whole number, 0 or more"):
        vae.sample(num_rows)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "0"])
def test_a_wrong_seed_is_refused(vae: VAE, seed: Any) -> None:
    with pytest.raises(SettingError, match="seed is"):
        vae.sample(1, seed=seed)


# Loading, threads, processes


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", None])
def test_a_wrong_number_of_threads_is_refused(mixed_bundle: Path, threads: Any) -> None:
    with pytest.raises(SettingError, match=r"threads is .*; it must be a whole number, at least 1"):
        parvae.load(mixed_bundle, threads=threads)


@pytest.mark.parametrize("settings", [{"threads": 2}, {"low_memory": True}])
def test_settings_of_the_machine_do_not_change_the_numbers(
    vae: VAE, mixed_bundle: Path, rows: Rows, settings: dict[str, Any]
) -> None:
    other = parvae.load(mixed_bundle, **settings)
    np.testing.assert_allclose(other.score(rows).nats, vae.score(rows).nats, rtol=1e-5)


def test_a_model_says_what_it_is(vae: VAE, digits: VAE) -> None:
    assert vae.model_id == vae.manifest["model_id"]
    assert vae.model_id != digits.model_id
    text = repr(vae)
    for part in (vae.model_id[:12], f"latent_size={vae.latent_size}", "age", "embedding"):
        assert part in text
    assert vae.schema["target"].role is Role.LABEL


@pytest.mark.parametrize("name", ["schema", "manifest", "model_id", "latent_size", "parts"])
def test_what_a_model_says_of_itself_cannot_be_set(vae: VAE, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(vae, name, None)


def test_eight_threads_over_one_model_give_the_same_bits(mixed_bundle: Path, rows: Rows) -> None:
    fresh = parvae.load(mixed_bundle)  # its sessions are opened by the threads

    def work(index: int) -> tuple[bytes, bytes, list[Any]]:
        return fresh.encode(rows).tobytes(), fresh.score(rows).nats.tobytes(), fresh.sample(20)["city"].tolist()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(64)))
    assert all(result == results[0] for result in results)


def test_threads_over_a_denoising_model_give_the_same_bits() -> None:
    fresh = parvae.load(ROOT / "tests" / "golden" / "format-2.vae")
    rows = fresh.sample(3_000)

    def work(index: int) -> tuple[bytes, bytes]:
        scores = fresh.score(rows)
        return scores.score.tobytes(), scores.blame().tobytes()

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(16)))
    assert all(result == results[0] for result in results)


def test_a_pickled_model_gives_the_same_bits(vae: VAE, rows: Rows) -> None:
    wanted = vae.score(rows).nats  # its sessions are open when it is pickled
    again = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(again.score(rows).nats, wanted)
    assert again.manifest == vae.manifest
    assert again.schema == vae.schema
    assert_same_rows(again.sample(5), vae.sample(5))


def run_script(script: str, *arguments: object, home: Path | None = None) -> str:
    """Standard output of a Python process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if home is not None:
        environment |= {"HOME": str(home), "USERPROFILE": str(home)}
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TMPDIR"):
            environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_four_forked_children_give_the_same_bits(mixed_bundle: Path, threads: int) -> None:
    # In a process of its own: the test process runs the threads of other libraries, which no fork survives.
    script = """
        import multiprocessing, sys, warnings
        import numpy as np
        import parvae

        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
        vae = parvae.load(sys.argv[1], threads=int(sys.argv[2]))
        rows = vae.sample(2_000)
        wanted = vae.score(rows).nats  # the parent's sessions are open, their threads running

        def work(send):
            send.send_bytes(vae.score(rows).nats.tobytes())

        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe(duplex=False) for _ in range(4)]
        children = [context.Process(target=work, args=(send,)) for _, send in pipes]
        for child in children:
            child.start()
        for child, (receive, _) in zip(children, pipes):
            assert receive.poll(60), "the child hangs"
            found = np.frombuffer(receive.recv_bytes(), np.float32)
            child.join(30)
            assert child.exitcode == 0, child.exitcode
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(vae.score(rows).nats, wanted)
        print("same")
    """
    assert run_script(script, mixed_bundle, threads) == "same"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_another_thread_opens_sessions_does_not_hang(mixed_bundle: Path) -> None:
    script = """
        import multiprocessing, sys, threading, warnings
        import parvae

        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
        vae = parvae.load(sys.argv[1])
        rows = parvae.load(sys.argv[1]).sample(3)
        held, release = threading.Event(), threading.Event()

        def hold():  # a private lock: no public call can be stopped inside it
            import os
            with vae._sessions._locks.setdefault(os.getpid(), threading.Lock()):
                held.set()
                release.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        child = multiprocessing.get_context("fork").Process(target=lambda: vae.score(rows))
        child.start()
        child.join(60)
        code = child.exitcode
        child.kill()
        release.set()
        holder.join()
        print(code)
    """
    assert run_script(script, mixed_bundle) == "0"


def test_nothing_is_written_to_the_home_folder_and_telemetry_is_off(mixed_bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    script = """
        import os, sys, time
        import parvae

        assert "ORT_DISABLE_TELEMETRY" not in os.environ
        vae = parvae.load(sys.argv[1])
        vae.score(vae.sample(3)).expected
        time.sleep(0.5)  # a writer in a thread would have had time to begin
        print(os.environ["ORT_DISABLE_TELEMETRY"])
    """
    assert run_script(script, mixed_bundle, home=home) == "1"
    assert list(home.rglob("*")) == []


def test_a_choice_about_telemetry_made_outside_is_respected(mixed_bundle: Path) -> None:
    script = """
        import os, sys
        os.environ["ORT_DISABLE_TELEMETRY"] = "true"
        import parvae

        parvae.load(sys.argv[1]).sample(1)
        print(os.environ["ORT_DISABLE_TELEMETRY"])
    """
    assert run_script(script, mixed_bundle) == "true"


def test_running_prints_nothing(mixed_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fresh = parvae.load(mixed_bundle)
    fresh.score(fresh.sample(10))
    assert capfd.readouterr() == ("", "")
