"""Two processes that train one model: the same weights in each, and the same as one process."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from pathlib import Path

import pytest
import torch
from builders import people_table, quick_settings, write_parquet
from torch import multiprocessing

from parvae_pipeline import gradient_sum
from parvae_pipeline.run_folder import torch_load
from parvae_pipeline.step_noise import BLOCK_ROWS, step_noise
from parvae_pipeline.train import train
from parvae_pipeline.world import World


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(rank: int, port: int, folder: str) -> None:
    """Use every method once and leave what came out; then train a model."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    world = World.of_this_process()
    short_run(folder, "two", world)
    sums = {"in memory": summed(world, torch.float32)}
    gradient_sum.MAX_SHARED_BYTES = 0
    sums["in messages"] = summed(world, torch.float32)
    sums["in short messages"] = summed(world, torch.bfloat16)
    copied = torch.full((2,), float(rank + 5))
    world.copy_from_first([copied])
    found = {
        "rank": world.rank,
        "size": world.size,
        "gradients": sums,
        "sum": world.sum(torch.tensor([1.0 + rank])),
        "from_first": world.from_first({"steps": 10 + rank}),
        "copied": copied,
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()  # a process that leaves while another still talks to it ends it
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo threads that outlive the interpreter abort the process: pytorch issue 190489


def summed(world: World, dtype: torch.dtype) -> list[torch.Tensor]:
    """Gradients of two weights after three steps' sums; a third weight has none."""
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1,))]
    sum_gradients = gradient_sum.gradient_sum(weights, world, dtype)
    through_memory = gradient_sum.MAX_SHARED_BYTES > 0 and hasattr(os, "memfd_create")
    assert isinstance(sum_gradients, gradient_sum._ThroughMemory) == through_memory
    for step in range(3):  # more than there are turns
        weights[0].grad = torch.full((2, 3), float(world.rank))
        weights[1].grad = torch.arange(4.0) * (world.rank + 1) + step
        sum_gradients()
    assert weights[2].grad is None
    return [weight.grad for weight in weights if weight.grad is not None]


def short_run(folder: str, name: str, world: World) -> None:
    settings = quick_settings(f"{folder}/people.parquet", max_steps=60, batch_size=30, precision="float32")
    # A mixture would be fitted to the rows of the first process.
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, prior="normal"))
    train(settings, Path(folder) / name, world=world)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes left their findings in."""
    folder = tmp_path_factory.mktemp("world")
    write_parquet(folder / "people.parquet", people_table(240))
    multiprocessing.spawn(together, args=(free_port(), str(folder)), nprocs=2)
    return folder


def test_two_processes_take_the_steps_of_one(outcome: Path) -> None:
    short_run(str(outcome), "one", World())
    one, two = (torch_load(outcome / name / "ckpt.pt") for name in ("one", "two"))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=0.0, atol=1e-5)
    nats = [json.loads(found["facts"])["metrics"]["negative_elbo_nats"] for found in (one, two)]
    assert nats[1] == pytest.approx(nats[0], abs=1e-4)


@pytest.mark.parametrize("num_ranks", [2, 3, 7])
def test_a_row_meets_the_same_noise_in_whichever_process_it_is(num_ranks: int) -> None:
    num_rows = 2 * BLOCK_ROWS // num_ranks
    sizes = {"seed": 1, "step": 5, "num_samples": 2, "latent_size": 3}
    whole = step_noise(first_row=0, num_rows=num_rows * num_ranks, **sizes)
    shares = [step_noise(first_row=rank * num_rows, num_rows=num_rows, **sizes) for rank in range(num_ranks)]
    assert torch.equal(torch.cat(shares, dim=1), whole)
    assert whole.unique().numel() == whole.numel()
    assert not torch.equal(step_noise(first_row=0, num_rows=num_rows * num_ranks, **{**sizes, "step": 6}), whole)


def test_two_processes_agree(outcome: Path) -> None:
    for rank in (0, 1):
        found = torch.load(outcome / f"{rank}.pt", weights_only=True)
        assert (found["rank"], found["size"]) == (rank, 2)
        assert sorted(found["gradients"]) == ["in memory", "in messages", "in short messages"]
        for first, second in found["gradients"].values():
            assert torch.equal(first, torch.full((2, 3), 1.0))
            assert torch.equal(second, torch.arange(4.0) * 3.0 + 4.0)
        assert found["sum"].item() == 3.0
        assert found["from_first"] == {"steps": 10}
        assert found["copied"].tolist() == [5.0, 5.0]


def test_memory_that_is_out_of_reach_or_another_file_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"other")
    assert gradient_sum._mapped(str(tmp_path / "none"), 4096) is None
    assert gradient_sum._mapped(str(tmp_path / "short"), 4096) is None
    (tmp_path / "long").write_bytes(bytes(4096))
    assert gradient_sum._mapped(str(tmp_path / "long"), 4096) is not None


def test_a_process_alone_keeps_what_it_has() -> None:
    world = World.of_this_process()
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    gradient_sum.gradient_sum([weight], world, torch.bfloat16)()
    assert world == World(rank=0, size=1)
    assert world.is_first
    assert weight.grad.tolist() == [1.0, 1.0]
    assert world.sum(torch.tensor(4.0)).item() == 4.0
    assert world.from_first("here") == "here"
