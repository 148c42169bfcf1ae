"""The run folder, local or in a bucket: run.toml, metrics.jsonl, ckpt.pt, resume/.

Every file appears whole or not at all.
"""

from __future__ import annotations

import io
import json
import time
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from parvae.errors import BundleError, SettingError
from parvae.storage import Place, Remote, place_of, write_whole
from parvae_pipeline.config import RunSettings, read_toml

METRICS_EVERY_S = 5.0
"""Objects cannot be appended to: in a bucket metrics.jsonl is written anew, at most this often."""


class RunFolder:
    """The files of one run."""

    def __init__(self, path: str | Place) -> None:
        self.path = place_of(path)
        self.settings_path = self.path / "run.toml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoint_path = self.path / "ckpt.pt"
        self.state_path = self.path / "resume" / "state.pt"
        self.plan_path = self.path / "resume" / "plan.parquet"
        self._lines: bytes | None = None
        self._lines_written_s = float("-inf")

    def claim(self, settings: RunSettings) -> None:
        """Write run.toml, or make sure that the one there holds the same settings.

        Raises SettingError when the folder belongs to a run with other settings.
        """
        self.require_same(settings)
        if self.settings_path.exists():
            return
        if isinstance(self.path, Path):
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()  # a process was killed while it wrote
        write_whole(self.settings_path, settings.to_toml().encode())

    def require_same(self, settings: RunSettings) -> None:
        """Raise SettingError when the folder is none, or belongs to a run with other settings; nothing is written."""
        if self.path.is_file():
            raise SettingError(f"{self.path} is a file; give a folder with -o")
        if not self.settings_path.exists():
            return
        found, wanted = read_toml(self.settings_path), tomllib.loads(settings.to_toml())
        if found != wanted:
            raise SettingError(
                f"{self.path} holds a run with other settings ({_difference(found, wanted)}); "
                "give another folder with -o, or the same settings to resume"
            )

    def settings(self) -> RunSettings:
        """The settings of the run that is here.

        Raises SettingError when there is none.
        """
        if not self.settings_path.exists():
            raise SettingError(f"{self.path} holds no run to resume (no run.toml); name the data to start one")
        return RunSettings.from_mapping(read_toml(self.settings_path))

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if isinstance(self.metrics_path, Remote):
            self._log_to_object(self.metrics_path, record)
            return
        with self.metrics_path.open("ab+") as file:
            if file.tell():
                file.seek(-1, io.SEEK_END)
                if file.read(1) != b"\n":  # a line cut off by a crash
                    file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a line cut off by a crash is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_bytes().decode(errors="replace").splitlines()
        return [record for record in map(_parsed, lines) if record is not None]

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace resume/state.pt."""
        if self._lines is not None:
            write_whole(self.metrics_path, self._lines)
        write_whole(self.state_path, torch_bytes(state))

    def load_state(self) -> dict[str, Any] | None:
        """The state to resume from, or None.

        Raises BundleError when the file is there but damaged.
        """
        return torch_load(self.state_path) if self.state_path.exists() else None

    def _log_to_object(self, place: Remote, record: Mapping[str, Any]) -> None:
        """Keep the lines here, and write them all when the last time is long enough ago; `save_state` does, too."""
        if self._lines is None:
            self._lines = place.read_bytes() if place.exists() else b""
        self._lines += json.dumps(record).encode() + b"\n"
        now_s = time.monotonic()
        if now_s - self._lines_written_s >= METRICS_EVERY_S:
            write_whole(place, self._lines)
            self._lines_written_s = now_s


def torch_bytes(document: Mapping[str, Any]) -> bytes:
    """Tensors and plain values as torch writes them."""
    buffer = io.BytesIO()
    torch.save(dict(document), buffer)
    return buffer.getvalue()


def torch_load(path: Place) -> dict[str, Any]:
    """A file of tensors and plain values; nothing in it can run code.

    Raises BundleError when it is missing, damaged or something else.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:
            damaged = archive.testzip()  # torch does not check: a flipped byte in a weight would load
        if damaged is not None:
            raise BundleError(f"{path} is damaged ({damaged}); copy it again or train anew")
        content.seek(0)
        document = torch.load(content, map_location="cpu", weights_only=True)
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"{path} cannot be opened: {error.strerror or error}") from error
    except Exception as error:  # torch raises what the unpickler or the zip reader meets: many types
        raise BundleError(
            f"{path} is no checkpoint of vae train, or it is damaged ({type(error).__name__}); "
            "give the ckpt.pt of a run"
        ) from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} is no checkpoint of vae train; give the ckpt.pt of a run")
    return document


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for table in sorted({*found, *wanted}):
        ours, theirs = wanted.get(table, {}), found.get(table, {})
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                return f"{table}.{key} is {theirs.get(key)!r} there and {ours.get(key)!r} now"
    return "unknown difference"
