"""The bundle file: what is written reads back, and anything damaged, altered or too new is refused with a sentence."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parvae
from parvae import BundleError
from parvae.bundle import FORMAT, MANIFEST, REQUIRED_MEMBERS, Bundle, bundle_bytes, read_bundle, write_whole


@pytest.fixture(scope="session")
def digits(digits_bundle: Path) -> Bundle:
    return read_bundle(digits_bundle)


@pytest.fixture(scope="session")
def content(digits_bundle: Path) -> bytes:
    return digits_bundle.read_bytes()


def zip_of(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file, written without the bundle's own writer."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def zip_with_manifest(manifest: Any, bundle: Bundle) -> bytes:
    return zip_of({MANIFEST: json.dumps(manifest).encode(), **bundle.members})


def spans(content: bytes) -> dict[str, range]:
    """Where the bytes of each member lie in the file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = {}
        for entry in archive.infolist():
            extra_bytes = int.from_bytes(content[entry.header_offset + 28 : entry.header_offset + 30], "little")
            first = entry.header_offset + 30 + len(entry.filename.encode()) + extra_bytes
            found[entry.filename] = range(first, first + entry.file_size)
        return found


def flipped(content: bytes, position: int, mask: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= mask
    return bytes(damaged)


def assert_refused_or_identical(content: bytes, bundle: Bundle) -> bool:
    """Whether damaged content was refused; what is read in spite of the damage must be what was written."""
    try:
        found = read_bundle(content)
    except BundleError:
        return True
    assert found.manifest == bundle.manifest
    assert found.members == bundle.members
    return False


# Round trip


def test_what_is_written_reads_back(digits: Bundle) -> None:
    again = read_bundle(bundle_bytes(digits.manifest, digits.members))
    assert again.manifest == digits.manifest
    assert again.members == digits.members
    assert again.manifest["format"] == 1


def test_the_same_members_make_the_same_bytes(digits: Bundle, content: bytes) -> None:
    assert bundle_bytes(digits.manifest, digits.members) == bundle_bytes(digits.manifest, digits.members) == content


def test_text_beyond_ascii_reads_back(digits: Bundle) -> None:
    manifest = {**digits.manifest, "note": "größe ␀ 数字 🙂"}
    assert read_bundle(bundle_bytes(manifest, digits.members)).manifest["note"] == manifest["note"]


def test_the_file_is_a_stored_zip_with_the_listed_members(content: bytes, digits: Bundle) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert set(archive.namelist()) == {MANIFEST, *digits.members}
    assert set(REQUIRED_MEMBERS) <= set(digits.members)
    for name, facts in digits.manifest["members"].items():
        assert facts["num_bytes"] == len(digits.members[name])


def test_a_path_a_string_bytes_and_a_file_object_read_alike(digits_bundle: Path, content: bytes) -> None:
    with digits_bundle.open("rb") as file:
        found = [read_bundle(source) for source in (digits_bundle, str(digits_bundle), content, file)]
    found.append(read_bundle(io.BytesIO(content)))
    assert all(bundle.members == found[0].members and bundle.manifest == found[0].manifest for bundle in found)
    assert [bundle.name for bundle in found[:4]] == [
        str(digits_bundle), str(digits_bundle), "the bundle", str(digits_bundle)
    ]  # fmt: skip


@pytest.mark.parametrize("as_source", [bytes, io.BytesIO], ids=["bytes", "file object"])
def test_a_model_loads_from_memory(as_source: Any, content: bytes, digits: Bundle) -> None:
    assert parvae.load(as_source(content)).model_id == digits.manifest["model_id"]


# What is refused


@pytest.mark.parametrize("name", ["absent.vae", "folder"])
def test_a_path_that_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BundleError, match=r"cannot be opened: .*; give the path of a model\.vae") as caught:
        parvae.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("source", [None, 3, ["model.vae"]], ids=["None", "number", "list"])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(parvae.Error, match="path, bytes or a binary file"):
        parvae.load(source)


@pytest.mark.parametrize("junk", [b"", b"PK\x03\x04", b"not a zip at all" * 100, bytes(10_000)], ids=range(4))
def test_what_is_no_zip_is_refused(junk: bytes) -> None:
    with pytest.raises(BundleError, match="damaged or was never one: copy it again or export it anew"):
        read_bundle(junk)


def test_the_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.vae"
    path.write_bytes(b"junk")
    with pytest.raises(BundleError, match=r"broken\.vae cannot be read as a bundle"):
        parvae.load(path)


def test_a_zip_without_manifest_is_refused() -> None:
    with pytest.raises(BundleError, match=f"without {MANIFEST}, so no bundle; give a file from vae-export"):
        read_bundle(zip_of({"weights.bin": b"1234"}))


def test_every_truncation_is_refused(content: bytes) -> None:
    rng = np.random.default_rng(0)
    ends = {0, 1, 21, 22, len(content) - 1, *range(len(content) - 60, len(content))}
    ends |= {span.start for span in spans(content).values()} | {span.stop for span in spans(content).values()}
    ends |= set(rng.integers(0, len(content), 150).tolist())
    for end in sorted(ends):
        with pytest.raises(BundleError, match=r"copy|export|give"):
            read_bundle(content[:end])


def test_a_flipped_byte_anywhere_is_refused_or_without_effect(content: bytes, digits: Bundle) -> None:
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(content), 200).tolist():
        assert_refused_or_identical(flipped(content, position, int(rng.integers(1, 256))), digits)


@pytest.mark.parametrize("member", [MANIFEST, *REQUIRED_MEMBERS])
def test_a_flipped_byte_inside_a_member_is_refused(member: str, content: bytes) -> None:
    span = spans(content)[member]
    rng = np.random.default_rng(2)
    positions = {span.start, span.stop - 1, *rng.integers(span.start, span.stop, 20).tolist()}
    for position in positions:
        with pytest.raises(BundleError):
            read_bundle(flipped(content, position, int(rng.integers(1, 256))))


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_in_the_frame_of_the_zip_is_refused_or_without_effect(
    mask: int, content: bytes, digits: Bundle
) -> None:
    inside = np.zeros(len(content), dtype=bool)
    for span in spans(content).values():
        inside[span.start : span.stop] = True
    refused = [
        assert_refused_or_identical(flipped(content, position, mask), digits)
        for position in np.flatnonzero(~inside).tolist()
    ]
    assert any(refused)


def test_an_exchanged_member_is_refused_by_its_hash(digits: Bundle) -> None:
    members = {**digits.members, "decode.onnx": digits.members["encode.onnx"]}
    with pytest.raises(
        BundleError, match=r"decode\.onnx differs from its recorded hash; copy the file again or export"
    ):
        read_bundle(zip_of({MANIFEST: json.dumps(digits.manifest).encode(), **members}))


def test_a_newer_format_says_how_to_upgrade(digits: Bundle) -> None:
    newer = zip_of({MANIFEST: json.dumps({**digits.manifest, "format": FORMAT + 1}).encode()})
    with pytest.raises(BundleError) as caught:
        parvae.load(newer)
    message = str(caught.value)
    assert f"format {FORMAT + 1}, newer than format {FORMAT}" in message
    assert "pip install --upgrade parvae" in message


def test_a_newer_format_is_refused_before_its_members_are_looked_at() -> None:
    with pytest.raises(BundleError, match="upgrade it: pip install --upgrade parvae"):
        read_bundle(zip_of({MANIFEST: json.dumps({"format": FORMAT + 1}).encode()}))


@pytest.mark.parametrize("manifest", [{}, [], "text", None, {"format": None}, {"format": "1"}])
def test_a_manifest_without_a_format_is_refused(manifest: Any) -> None:
    with pytest.raises(BundleError, match="states no format; give a file from vae-export"):
        read_bundle(zip_of({MANIFEST: json.dumps(manifest).encode()}))


@pytest.mark.parametrize("manifest", [b"", b"{", b"\xff\xfe", b'{"format": 1'])
def test_a_manifest_that_is_no_json_is_refused(manifest: bytes) -> None:
    with pytest.raises(BundleError, match="copy it again or export it anew"):
        read_bundle(zip_of({MANIFEST: manifest}))


@pytest.mark.parametrize("member", REQUIRED_MEMBERS)
def test_a_member_missing_from_the_manifest_is_named(member: str, digits: Bundle) -> None:
    members = {name: content for name, content in digits.members.items() if name != member}
    with pytest.raises(BundleError, match=f"lacks {member}; export it anew"):
        read_bundle(bundle_bytes(digits.manifest, members))


@pytest.mark.parametrize("member", REQUIRED_MEMBERS)
def test_a_member_missing_from_the_zip_is_named(member: str, digits: Bundle) -> None:
    members = {name: content for name, content in digits.members.items() if name != member}
    with pytest.raises(BundleError, match=member):
        read_bundle(zip_of({MANIFEST: json.dumps(digits.manifest).encode(), **members}))


def test_a_manifest_that_lists_no_hash_is_refused(digits: Bundle) -> None:
    listing: dict[str, Any] = {name: {} for name in digits.members}
    with pytest.raises(BundleError):
        read_bundle(zip_with_manifest({**digits.manifest, "members": listing}, digits))


def test_a_manifest_that_lists_members_without_facts_is_refused(digits: Bundle) -> None:
    with pytest.raises(BundleError):
        read_bundle(zip_with_manifest({**digits.manifest, "members": list(digits.members)}, digits))


@pytest.mark.parametrize("key", ["schema", "calibration", "latent_size", "model_id", "noise"])
def test_a_manifest_that_lacks_what_the_model_needs_is_refused(key: str, digits: Bundle) -> None:
    manifest = {name: value for name, value in digits.manifest.items() if name != key}
    with pytest.raises(BundleError, match=key):
        parvae.load(bundle_bytes(manifest, digits.members))


# Writing


def test_a_file_is_written_whole_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "model.vae"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["model.vae"]


def test_a_write_that_fails_at_the_end_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "model.vae"
    path.mkdir()  # a folder of that name cannot be replaced by a file
    with pytest.raises(OSError, match=r"model\.vae"):
        write_whole(path, b"content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.vae"]
    assert path.is_dir()


def test_a_write_that_fails_in_between_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_is_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.vae"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.vae"]
