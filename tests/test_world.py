"""Two processes that train one model: the same weights in each, and the same as one process where chance is equal."""

from __future__ import annotations

import socket
from pathlib import Path

import torch
from torch import multiprocessing

from parvae_pipeline.world import World


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(rank: int, port: int, folder: str) -> None:
    """Use every method once and leave what came out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    world = World.of_this_process()
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
    torch.distributed.destroy_process_group()


def test_two_processes_agree(tmp_path: Path) -> None:
    multiprocessing.spawn(together, args=(free_port(), str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
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
