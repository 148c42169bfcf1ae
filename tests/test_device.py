"""Where training runs: the choice of the device, and batches on their way to it. "meta" stands in for a GPU."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from builders import architecture, encoded, people_table
from torch import Tensor

from parvae.errors import SettingError
from parvae_pipeline.device import CPU, choose_device, placed
from parvae_pipeline.model import VariationalAutoencoder

META = torch.device("meta")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def batches(num_batches: int, taken: list[int]) -> Iterator[dict[str, Tensor]]:
    for index in range(num_batches):
        taken.append(index)
        yield {"x": torch.full((index + 1, 2), float(index))}


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_takes_the_processor() -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingError, match=r"train.device is 'cuda'.*no CUDA device.*'auto' or 'cpu'"):
        choose_device("cuda")


def test_a_gpu_is_taken_where_there_is_one_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    assert choose_device("cpu") == CPU


def test_on_the_processor_batches_pass_as_they_are() -> None:
    made = list(batches(3, []))
    assert all(found["x"] is batch["x"] for found, batch in zip(placed(iter(made), CPU), made, strict=True))


@pytest.mark.parametrize("num_batches", [0, 1, 2, 5])
def test_every_batch_reaches_the_device_in_order(num_batches: int) -> None:
    found = list(placed(batches(num_batches, []), META))
    assert [batch["x"].shape[0] for batch in found] == list(range(1, num_batches + 1))
    assert all(batch["x"].device == META for batch in found)


def test_the_next_batch_is_on_its_way_before_it_is_asked_for() -> None:
    taken: list[int] = []
    on_device = placed(batches(5, taken), META)
    next(on_device)
    assert taken == [0, 1]


def test_a_model_with_every_role_makes_no_tensor_on_another_device_than_its_own() -> None:
    schema, rows = encoded(people_table(50))
    for prior in ("normal", "realnvp"):
        model = VariationalAutoencoder(schema, architecture(prior=prior)).to(META)
        raw = {name: torch.tensor(array).to(META) for name, array in rows.items()}
        terms = model.elbo_terms(raw, torch.randn(50, model.latent_size, device=META))
        terms.negative_elbo_nats.mean().backward()  # type: ignore[no-untyped-call]
        assert model.score_terms(raw).kl_nats.device == model.device == META
        assert all(weight.grad is not None and weight.grad.device == META for weight in model.parameters())


FAULTS = """
import resource
import torch
from parvae_pipeline.device import keep_freed_memory

def faults_of_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.ones(5_000_000) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults_of_steps()
keep_freed_memory()
faults_of_steps()
print(before, faults_of_steps())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_memory_that_a_step_frees_is_not_faulted_in_anew() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
