"""Timing a bundle: every verb, enough calls for a 99th percentile, and what the figures depend on."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from conftest import ROOT

from parvae import SettingError
from parvae.bundle import read_bundle
from parvae.cli import vae
from parvae.edge.bench import CALLS, MIN_CALLS, measure

GOLDEN = ROOT / "tests" / "golden" / "format-2.vae"


def test_every_verb_is_timed_by_enough_calls() -> None:
    speeds = measure(read_bundle(GOLDEN), threads=2, batch_rows=8, budget_s=1e-3)
    assert [speed.verb for speed in speeds] == list(CALLS)
    for speed in speeds:
        assert speed.num_calls >= MIN_CALLS
        assert 0 < speed.median_ms <= speed.p99_ms
        assert speed.rows_per_s > 0


@pytest.mark.parametrize("setting", ["threads", "batch_rows", "budget_s"])
def test_a_setting_that_is_not_positive_is_refused(setting: str) -> None:
    with pytest.raises(SettingError, match=f"{setting} is 0; it must be above 0"):
        measure(read_bundle(GOLDEN), **{setting: 0})


def test_the_figures_name_model_machine_and_versions() -> None:
    done = CliRunner().invoke(vae, ["bench", str(GOLDEN), "--seconds", "0.001", "--batch-rows", "8", "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.output)
    assert figures["model_id"] == read_bundle(GOLDEN).manifest["model_id"]
    assert {"processor", "cores", "system", "versions", "threads", "batch_rows"} <= set(figures)
    assert list(figures["verbs"]) == list(CALLS)
    table = CliRunner().invoke(vae, ["bench", str(GOLDEN), "--seconds", "0.001", "--batch-rows", "8"]).output
    assert [line.split()[0] for line in table.splitlines()[-3:]] == list(CALLS)
