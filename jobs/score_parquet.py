"""Score Parquet files on the cluster that this job was submitted to: one output a file, same rows, resumable.

    ray job submit --working-dir . -- python jobs/score_parquet.py /shared/model.vae /shared/data -o /shared/scores

The work on one file is `parvae.bulk.attempt`, the one that `vae score` runs; here a pool of actors shares the files.
A second submission does only what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click
import ray

from parvae.bulk import Outcome, Task, attempt, plan, score_transform, sift, write_ledger
from parvae.commands import print_outcomes
from parvae.console import PlaceType, Verb, json_option
from parvae.files import find_files
from parvae.model import load
from parvae.storage import Place

MAX_RESTARTS = 3


@ray.remote(max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class Scorer:
    """Holds one session; files are independent, and an output appears whole or not at all, so a retry is safe."""

    def __init__(self, model: bytes, alpha: float, stamp: dict[str, str]) -> None:
        self._transform = score_transform(load(model), alpha=alpha)
        self._stamp = stamp

    def score(self, task: Task) -> Outcome:
        """Score one file."""
        return attempt(task, self._transform, stamp=self._stamp)


@click.command(cls=Verb)
@click.argument("model", type=PlaceType())
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=PlaceType(), help="A folder that all nodes see, or a URL.")
@click.option("--alpha", default=0.01, show_default=True, help="Share of normal rows that may be flagged.")
@click.option("--workers", type=click.IntRange(min=1), help="Actors of one CPU.  [default: the CPUs of the cluster]")
@json_option
def score(model: Place, data: Sequence[str], output: Place, alpha: float, workers: int | None, as_json: bool) -> None:
    """Score every row of DATA by MODEL on the cluster."""
    content = model.read_bytes()
    bundle = load(content)
    tasks = plan(find_files(data), output.absolute())
    ray.init(address="auto", log_to_driver=False)
    stamp = {
        "parvae.verb": "score",
        "parvae.settings": f"alpha={alpha} calibration={bundle.calibration_id}",
        "parvae.model_id": bundle.model_id,
    }
    finished, missing = sift(tasks, stamp=stamp)
    num_actors = min(len(missing), workers or int(ray.cluster_resources().get("CPU", 1)))
    # Ray makes the constructor's arguments from what remote() is given; its types do not say so.
    actors = [Scorer.remote(content, alpha, stamp) for _ in range(num_actors)]  # type: ignore[attr-defined]
    print_outcomes(bundle, _outcomes(actors, finished, missing, output), output, as_json=as_json)


def _outcomes(
    actors: Sequence[ray.actor.ActorHandle], finished: Sequence[Outcome], missing: Sequence[Task], output: Place
) -> Iterator[Outcome]:
    """Outcomes as they come; every actor has one file in hand."""
    yield from finished
    waiting = list(reversed(missing))
    running = {actor.score.remote(waiting.pop()): actor for actor in actors}
    outcomes = list(finished)
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(done)
        if waiting:
            running[actor.score.remote(waiting.pop())] = actor
        outcomes.append(ray.get(done))
        yield outcomes[-1]
    write_ledger(outcomes, output)


if __name__ == "__main__":
    sys.exit(score.main(prog_name="jobs/score_parquet.py"))
