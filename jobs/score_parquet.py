"""Score Parquet files on the cluster that this job was submitted to: one output a file, same rows, resumable.

    ray job submit --working-dir . -- python jobs/score_parquet.py /shared/model.vae /shared/data -o /shared/scores

The work on one file is `parvae.bulk.attempt`, the one that `vae score` runs; a file of more than `--part-mb` on disk is
shared out by row groups (`parvae.parts`). A pool of actors takes files and parts in turn. A second submission does only
what is missing.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import click
import ray

from parvae.bulk import FOOTERS_AT_A_TIME, Outcome, Task, attempt, plan, score_transform, sift, write_ledger
from parvae.commands import print_outcomes, scoring_options
from parvae.console import PlaceType, Verb, json_option
from parvae.errors import SettingError
from parvae.files import find_files
from parvae.model import load
from parvae.parts import Part, attempt_part, join, parts_of, remove_parts
from parvae.scoring import Scoring
from parvae.storage import Place

MAX_RESTARTS = 3


@ray.remote(num_cpus=1, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class Scorer:
    """Holds one session. Files and parts are independent and appear whole or not at all, so a retry is safe."""

    def __init__(self, models: list[ray.ObjectRef[bytes]], scoring: Scoring, stamp: dict[str, str]) -> None:
        # A reference in a list: the bytes themselves would be gone when the actor is started anew.
        (content,) = ray.get(models)
        self._transform = score_transform(load(content), alpha=scoring.alpha, num_explained=scoring.num_explained)
        self._stamp, self._discovery_rate = stamp, scoring.discovery_rate

    def score(self, task: Task) -> Outcome:
        """Score one file."""
        return attempt(task, self._transform, stamp=self._stamp, discovery_rate=self._discovery_rate)

    def score_part(self, part: Part) -> Outcome:
        """Score some row groups of a file."""
        return attempt_part(part, self._transform, stamp=self._stamp)

    def join(self, task: Task, parts: list[Part]) -> Outcome:
        """Write the output of a file from its parts."""
        return join(task, parts, stamp=self._stamp, discovery_rate=self._discovery_rate)


@dataclass(kw_only=True)
class Work:
    """One file, whole or in parts, and what has become of the parts."""

    task: Task
    parts: list[Part]
    outcomes: list[Outcome] = field(default_factory=list)

    def first_calls(self) -> list[Call]:
        """What can be done at once."""
        return [(self, "score_part", (part,)) for part in self.parts] or [(self, "score", (self.task,))]

    def after(self, verb: str, outcome: Outcome) -> Outcome | Call | None:
        """The outcome of the file, or the call that is due now that one has ended."""
        if verb != "score_part":
            return outcome
        self.outcomes.append(outcome)
        if len(self.outcomes) < len(self.parts):
            return None
        failed = [found for found in self.outcomes if found.error is not None]
        return failed[0] if failed else (self, "join", (self.task, self.parts))


Call = tuple[Work, str, tuple[object, ...]]
"""A method of `Scorer` and its arguments."""


@click.command(cls=Verb)
@click.argument("model", type=PlaceType())
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=PlaceType(), help="A folder that all nodes see, or a URL.")
@scoring_options
@click.option("--workers", type=click.IntRange(min=1), help="Actors of one CPU.  [default: the CPUs of the cluster]")
@click.option(
    "--part-mb",
    default=256.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Files larger than this are shared out, at row groups.",
)
@json_option
def score(
    model: Place,
    data: Sequence[str],
    output: Place,
    alpha: float | None,
    fdr: float | None,
    num_explained: int,
    workers: int | None,
    part_mb: float,
    as_json: bool,
) -> None:
    """Score every row of DATA by MODEL on the cluster."""
    content = model.read_bytes()
    bundle = load(content)
    scoring = Scoring.chosen(
        bundle, alpha=alpha, discovery_rate=fdr, num_explained=num_explained, note=partial(click.echo, err=True)
    )
    tasks = plan(find_files(data), output.absolute())
    ray.init(address="auto", log_to_driver=False)
    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    if num_cpus < (workers or 1):  # Ray would wait for them for ever
        raise SettingError(
            f"{workers or 1} actors need as many CPUs; the cluster has {num_cpus}: take fewer with --workers, or start "
            "more nodes"
        )
    stamp = {
        "parvae.verb": "score",
        "parvae.settings": scoring.settings(bundle),
        "parvae.model_id": bundle.model_id,
    }
    finished, missing = sift(tasks, stamp=stamp)
    with ThreadPoolExecutor(FOOTERS_AT_A_TIME) as readers:
        parts = list(readers.map(partial(parts_of, part_bytes=int(part_mb * 2**20)), missing))
    works = [Work(task=task, parts=found) for task, found in zip(missing, parts, strict=True)]
    num_calls = sum(len(work.first_calls()) for work in works)
    num_actors = min(num_calls, workers or num_cpus)
    models = [ray.put(content)]
    # Ray makes the constructor's arguments from what remote() is given; its types do not say so.
    actors = [Scorer.remote(models, scoring, stamp) for _ in range(num_actors)]  # type: ignore[attr-defined]
    print_outcomes(bundle, _outcomes(actors, finished, works, output), output, as_json=as_json)


def _outcomes(
    actors: Sequence[ray.actor.ActorHandle], finished: Sequence[Outcome], works: Sequence[Work], output: Place
) -> Iterator[Outcome]:
    """Outcomes of files as they come; every actor has one file or part in hand."""
    yield from finished
    calls: deque[Call] = deque(call for work in works for call in work.first_calls())
    outcomes, idle = list(finished), list(actors)
    running: dict[ray.ObjectRef, tuple[ray.actor.ActorHandle, Work, str]] = {}
    while calls or running:
        while calls and idle:
            work, verb, arguments = calls.popleft()
            actor = idle.pop()
            running[getattr(actor, verb).remote(*arguments)] = actor, work, verb
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor, work, verb = running.pop(done)
        idle.append(actor)
        match work.after(verb, ray.get(done)):
            case Outcome() as outcome:
                outcomes.append(outcome)
                yield outcome
            case tuple() as call:
                calls.appendleft(call)
    remove_parts([outcome.task for outcome in outcomes])  # also of runs that were killed
    write_ledger(outcomes, output)


if __name__ == "__main__":
    sys.exit(score.main(prog_name="jobs/score_parquet.py"))
