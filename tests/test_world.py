"""Two processes that train one model: the same weights in each, and the same as one process."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from builders import people_table, quick_settings, write_parquet
from torch import multiprocessing

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
    weights = [
        torch.nn.Parameter(torch.zeros(2, 3)),
        torch.nn.Parameter(torch.zeros(4)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    weights[0].grad = torch.full((2, 3), float(rank))
    weights[1].grad = torch.arange(4.0) * (rank + 1)
    world.average_gradients(weights)  # the third has no gradient
    copied = torch.full((2,), float(rank + 5))
    world.copy_from_first([copied])
    found = {
        "rank": world.rank,
        "size": world.size,
        "gradients": [weights[0].grad, weights[1].grad],
        "sum": world.sum(torch.tensor([1.0 + rank])),
        "from_first": world.from_first({"steps": 10 + rank}),
        "copied": copied,
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()  # a process that leaves while another still talks to it ends it
    torch.distributed.destroy_process_group()


def short_run(folder: str, name: str, world: World) -> None:
    settings = quick_settings(f"{folder}/people.parquet", max_steps=60, batch_size=30, precision="float32")
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
        assert torch.equal(found["gradients"][0], torch.full((2, 3), 0.5))
        assert torch.equal(found["gradients"][1], torch.arange(4.0) * 1.5)
        assert found["sum"].item() == 3.0
        assert found["from_first"] == {"steps": 10}
        assert found["copied"].tolist() == [5.0, 5.0]


def test_a_process_alone_keeps_what_it_has() -> None:
    world = World.of_this_process()
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    world.average_gradients([weight])
    assert world == World(rank=0, size=1)
    assert world.is_first
    assert weight.grad.tolist() == [1.0, 1.0]
    assert world.sum(torch.tensor(4.0)).item() == 4.0
    assert world.from_first("here") == "here"
