"""A loaded model in threads, processes and other places: the same bits, and silence."""

from __future__ import annotations

import importlib.resources
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from mixed_rows import Rows, assert_same_rows

import parvae
from parvae import VAE, Role, SettingError

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits.parquet"
MORE_THAN_ONE_CHUNK = 1_100


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


def test_a_model_loads_from_bytes_and_from_inside_a_zip(mixed_bundle: Path, rows: Rows, tmp_path: Path) -> None:
    wanted = parvae.load(mixed_bundle).score(rows).nats.tobytes()
    assert parvae.load(mixed_bundle.read_bytes()).score(rows).nats.tobytes() == wanted
    with zipfile.ZipFile(tmp_path / "app.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(mixed_bundle, "app/model.vae")
    with zipfile.ZipFile(tmp_path / "app.zip") as archive, archive.open("app/model.vae") as file:
        assert parvae.load(file).score(rows).nats.tobytes() == wanted


def test_a_model_loads_from_a_package_that_is_imported_from_a_wheel(
    mixed_bundle: Path, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "app-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("app_with_a_model/__init__.py", "")
        wheel.write(mixed_bundle, "app_with_a_model/model.vae")
    monkeypatch.syspath_prepend(tmp_path / "app-1-py3-none-any.whl")
    resource = importlib.resources.files("app_with_a_model") / "model.vae"
    with resource.open("rb") as file:
        assert parvae.load(file).score(rows).nats.tobytes() == parvae.load(mixed_bundle).score(rows).nats.tobytes()


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
