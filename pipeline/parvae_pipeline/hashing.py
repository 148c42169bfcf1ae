"""The hash by which a category column tells values that it does not list: the one that onnxruntime's graphs compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parvae.schema import FIRST_LEVEL_CODE, UNSEEN_CODE, CategoryFacts

FIRST_FACTOR, SECOND_FACTOR = np.uint32(0xCC9E2D51), np.uint32(0x1B873593)


def murmur3(texts: Sequence[str]) -> NDArray[np.uint32]:
    """(n,) MurmurHash3 (x86, 32 bits, seed 0; Appleby 2011) of each text as UTF-8, as the operator
    `com.microsoft.MurmurHash3` gives it.
    """
    contents = [text.encode() for text in texts]
    sizes = np.array([len(content) for content in contents], dtype=np.int64)
    hashes = np.zeros(len(contents), np.uint32)
    for size in np.unique(sizes).tolist():
        (rows,) = np.nonzero(sizes == size)
        num_words = -(-size // 4)
        content = b"".join(contents[row].ljust(4 * num_words, b"\0") for row in rows)
        words = np.frombuffer(content, "<u4").astype(np.uint32).reshape(len(rows), num_words)
        hashes[rows] = _mixed(words, size)
    return hashes


def bucket_codes(facts: CategoryFacts) -> NDArray[np.int64]:
    """(num_buckets,) code of the level that stands for each bucket, or UNSEEN_CODE where training met none of its
    values."""
    codes = np.full(facts.num_buckets, UNSEEN_CODE, np.int64)
    codes[list(facts.buckets)] = FIRST_LEVEL_CODE + len(facts.own_levels) + np.arange(len(facts.buckets))
    return codes


def hashed_codes(facts: CategoryFacts, texts: Sequence[str]) -> NDArray[np.int64]:
    """(n,) codes of texts that are not listed, in a column with buckets."""
    codes: NDArray[np.int64] = bucket_codes(facts)[murmur3(texts) % facts.num_buckets]
    return codes


def _mixed(words: NDArray[np.uint32], size: int) -> NDArray[np.uint32]:
    """Hashes (n,) of texts of `size` bytes, as words (n, w) with zeros after the last byte."""
    hashes = np.zeros(len(words), np.uint32)
    for index in range(words.shape[1]):
        hashes ^= _rotated(words[:, index] * FIRST_FACTOR, 15) * SECOND_FACTOR
        if 4 * (index + 1) <= size:  # the bytes after the last whole word are mixed in, and no more
            hashes = _rotated(hashes, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    hashes ^= np.uint32(size)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashes = (hashes ^ (hashes >> np.uint32(shift))) * np.uint32(factor)
    return hashes ^ (hashes >> np.uint32(16))


def _rotated(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    return (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))
