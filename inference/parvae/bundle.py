"""The bundle `model.vae`: one stored zip with a manifest, the ONNX graphs and golden rows. Formats 1 and 2.

    manifest.json   format, model id, schema, latent size, score definition, calibration, sha256 of every other member
    encode.onnx     raw columns -> mean, stddev of the posterior
    decode.onnx     z -> columns in data units
    score.onnx      raw columns -> score, contributions (nats); in format 2 also strangeness, parts, conditional (nats)
    sample.onnx     z_noise, noise -> columns in data units
    golden.npz      rows in, numbers out: what `selftest` replays
    card.md         the model in words
    codec.npz       with `vae export --codec` alone, and so
    decode_exact.onnx  the parameters of a column of numbers, given the columns before it: see `vaez.codec`

Format 2 is that of models that tell strangeness: their calibration table holds strangeness, where format 1 holds nats.
A bundle states the oldest format that tells it right. A reader verifies every hash and the format before a session is
opened. Nothing is ever extracted to disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from parvae.errors import BundleError, MissingExtraError
from parvae.stored_zip import read_stored_zip

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 2
MANIFEST = "manifest.json"
GRAPHS = ("encode", "decode", "score", "sample")
REQUIRED_MEMBERS = (*(f"{graph}.onnx" for graph in GRAPHS), "golden.npz", "card.md")
REQUIRED_KEYS = ("model_id", "schema", "latent_size", "score", "calibration", "noise", "metrics", "versions")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed time stamps: the same members make the same file

BundleSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle in memory."""

    manifest: Mapping[str, Any]
    members: Mapping[str, bytes]
    name: str
    """Where it came from, for messages."""


def read_bundle(source: BundleSource) -> Bundle:
    """Read and verify a bundle from a path, a URL (needs pyarrow), bytes or a binary file object.

    Raises BundleError when the file is missing, truncated, altered, not a bundle, or of a newer format.
    """
    name, content = _content_of(source)
    try:
        found = read_stored_zip(content)
        if MANIFEST not in found:
            raise BundleError(f"{name} is a zip file without {MANIFEST}, so no bundle; give a file from vae-export")
        manifest = json.loads(found[MANIFEST])
        _check_manifest(name, manifest)
        members = {member: found[member] for member in manifest["members"]}
    except BundleError:
        raise
    except (KeyError, ValueError, struct.error) as error:  # the zip, UTF-8, JSON, or a member that is not there
        raise BundleError(
            f"{name} cannot be read as a bundle ({error}); it is damaged or was never one: "
            "copy it again or export it anew"
        ) from error
    for member, facts in manifest["members"].items():
        if hashlib.sha256(members[member]).hexdigest() != facts["sha256"]:
            raise BundleError(f"{name}: {member} differs from its recorded hash; copy the file again or export it anew")
    return Bundle(manifest=manifest, members=members, name=name)


def bundle_bytes(manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """The content of a bundle file; `manifest` gets its format and the hash of every member."""
    listing = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
        for name, content in members.items()
    }
    import zipfile  # only who writes a bundle waits for it

    tells_strangeness = "strangeness" in manifest.get("score", {})
    document = {**manifest, "format": FORMAT if tells_strangeness else 1, "members": listing}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST, _EPOCH), json.dumps(document, indent=1, ensure_ascii=False))
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return buffer.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the whole new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _content_of(source: BundleSource) -> tuple[str, bytes]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the bundle", bytes(source)
    if isinstance(source, str) and "://" in source:
        return source, _download(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            with open(source, "rb") as file:  # noqa: PTH123  # pathlib takes 4 ms to import
                return str(source), file.read()
        except OSError as error:
            raise BundleError(f"{source} cannot be opened: {error.strerror}; give the path of a model.vae") from error
    if not hasattr(source, "read"):
        raise BundleError(f"a bundle cannot be read from {source!r}; give a path, bytes or a binary file")
    return str(getattr(source, "name", "the bundle")), source.read()


def _download(url: str) -> bytes:
    try:
        from parvae.storage import place_of
    except ImportError as error:
        raise MissingExtraError(f"{url} needs pyarrow: pip install 'parvae[parquet]' (or pass its bytes)") from error
    try:
        return place_of(url).read_bytes()
    except OSError as error:
        raise BundleError(f"{url} cannot be opened ({error}); give the address of a model.vae") from error


def _check_manifest(name: str, manifest: Any) -> None:
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(found, int):
        raise BundleError(f"{name}: {MANIFEST} states no format; give a file from vae-export")
    if found > FORMAT:
        raise BundleError(
            f"{name} has bundle format {found}, newer than format {FORMAT} that this parvae reads; "
            "upgrade it: pip install --upgrade parvae"
        )
    members = manifest.get("members")
    listing = members if isinstance(members, dict) else {}
    missing = [member for member in REQUIRED_MEMBERS if "sha256" not in (listing.get(member) or {})]
    missing += [f"{MANIFEST}: {key}" for key in REQUIRED_KEYS if key not in manifest]
    if missing:
        raise BundleError(f"{name} lacks {', '.join(missing)}; export it anew")
