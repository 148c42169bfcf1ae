"""The report: one page that needs nothing else, figures that programs can read, and pictures of the right rows."""

from __future__ import annotations

import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import train_small
from PIL import Image

from parvae.errors import DataError, SettingError
from parvae_pipeline.charts import png, ticks_between
from parvae_pipeline.commands import report
from parvae_pipeline.marginals import Marginal, cramers_v
from parvae_pipeline.report import write_report


class Page(HTMLParser):
    """Tags that were opened and not closed, and what the page would load."""

    VOID = ("meta", "img", "line", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(("run", "heading"), [("mixed_run", "Pairs of columns"), ("digits_run", "Along the active")])
def test_a_report_is_one_whole_page_that_loads_nothing(
    run: str, heading: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(run), tmp_path / "run"))
    result = CliRunner().invoke(report, [str(folder), "--json"])
    assert result.exit_code == 0, result.output
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert heading in text
    facts = json.loads((folder / "report.json").read_text())
    assert facts["likelihood"]["num_samples"] == 1_000
    assert facts["likelihood"]["negative_log_likelihood_nats"] < facts["negative_elbo_nats"] + 3.0
    assert sum(facts["column_nats"].values()) == pytest.approx(facts["distortion_nats"])
    assert facts["diagnosis"]["latent_size"] == facts["architecture"]["latent_size"]
    assert [event["event"] for event in facts["events"] if event["event"] != "surplus"] == ["prior"]


def test_a_folder_without_a_run_and_a_run_without_rows_are_refused(mixed_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no run"):
        write_report(tmp_path)
    folder = train_small_without_rows(mixed_run, tmp_path / "private")
    with pytest.raises(DataError, match="reservoir_rows is 0"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_report_shows_what_another_run_of_the_same_data_came_to(
    mixed_run: Path, digits_run: Path, tmp_path: Path
) -> None:
    ours = Path(shutil.copytree(mixed_run, tmp_path / "ours"))
    data = mixed_run.parent / "mixed.parquet"
    plain = train_small(data, tmp_path / "plain", label="target", max_steps=60, prior="normal", likelihood="mse")
    result = CliRunner().invoke(report, [str(ours), "--beside", str(plain), "--json"])
    assert result.exit_code == 0, result.output
    first, second = json.loads((ours / "report.json").read_text())["beside"]
    assert (first["run"], second["run"]) == ("ours", "plain")
    assert first["negative_elbo_nats"] < second["negative_elbo_nats"]
    wanted = {"model.prior": "normal", "model.likelihood": "mse", "train.max_steps": 60}
    assert second["settings"] == wanted
    assert list(first["settings"]) == list(second["settings"])
    text = (ours / "report.html").read_text(encoding="utf-8")
    assert not Page(text).open
    assert "model.prior = normal" in text
    assert "Nats of different likelihoods are not comparable" in text
    assert f"{second['negative_elbo_nats']:,.2f}" in text
    with pytest.raises(DataError, match="models 'image', and the one in"):
        write_report(ours, beside=[digits_run])


def train_small_without_rows(run: Path, folder: Path) -> Path:
    from parvae_pipeline.config import RunSettings
    from parvae_pipeline.train import train

    document = {
        "data": {"paths": [str(run.parent / "mixed.parquet")], "reservoir_rows": 0},
        "model": {"width": 8},
        "train": {"max_steps": 30, "threads": 1},
    }
    train(RunSettings.from_mapping(document), folder)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels_it_was_given(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.uint8)
    found = np.asarray(Image.open(io.BytesIO(png(pixels))))
    np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)


def test_ticks_are_round_and_inside() -> None:
    assert ticks_between(0.0, 1.0) == [
        (0.0, "0.0"),
        (0.2, "0.2"),
        (0.4, "0.4"),
        (pytest.approx(0.6), "0.6"),
        (0.8, "0.8"),
        (1.0, "1.0"),
    ]
    assert [text for _, text in ticks_between(-3_000, 2_000)] == ["-3,000", "-2,000", "-1,000", "0", "1,000", "2,000"]


def test_association_is_one_for_copies_and_zero_for_strangers() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 4, 5_000), generator.integers(0, 6, 5_000)
    assert cramers_v(first, first) == pytest.approx(1.0, abs=1e-3)
    assert cramers_v(first, second) < 0.05
    assert cramers_v(first, np.zeros(5_000, np.int64)) == 0.0


def test_overlap_is_what_two_distributions_share() -> None:
    marginal = Marginal(name="x", bins=("a", "b"), real=(0.75, 0.25), sampled=(0.25, 0.75))
    assert marginal.overlap == pytest.approx(0.5)
