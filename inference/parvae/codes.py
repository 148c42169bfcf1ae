"""Codes of one byte a number: the posterior mean on a grid that is as coarse as the posterior is wide.

A step of c * sqrt(12) * sigma adds noise of standard deviation c * sigma, where sigma is the noise that the decoder was
trained with. Distances between the whole numbers count a latent by what it tells of the row: one that the posterior
knows well has a fine step. Source: Ballé, Laparra and Simoncelli, "End-to-end optimized image compression" (ICLR 2017).

Letters in shapes: n rows, latent = numbers in a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.errors import BundleError

NOISE_SHARE = 0.5
"""Standard deviation of the rounding error, in those of the posterior."""
LARGEST = 127
SMALLEST = 1e-12
"""Standard deviation of a plain autoencoder, whose posteriors have none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeGrid:
    """Steps (latent,) float32 of the grid; whole numbers end at -127 and 127."""

    steps: NDArray[np.float32]

    @classmethod
    def fit(cls, means: NDArray[np.float32], stddevs: NDArray[np.float32]) -> Self:
        """The grid for posteriors (n, latent), n > 0; no mean among them leaves it."""
        sigma = np.exp(np.mean(np.log(np.maximum(stddevs, SMALLEST), dtype=np.float64), axis=0))
        reach = np.abs(means).max(axis=0).astype(np.float64) / LARGEST
        return cls(steps=np.maximum(NOISE_SHARE * np.sqrt(12.0) * sigma, reach).astype(np.float32))

    def quantised(self, means: NDArray[np.float32]) -> NDArray[np.int8]:
        """(n, latent) the nearest whole number of steps; what lies outside goes to the end of the grid."""
        codes: NDArray[np.int8] = np.clip(np.rint(means / self.steps), -LARGEST, LARGEST).astype(np.int8)
        return codes

    def restored(self, codes: NDArray[np.int8]) -> NDArray[np.float32]:
        """(n, latent) the codes that whole numbers stand for."""
        return codes * self.steps

    def to_json(self) -> dict[str, Any]:
        """As in the manifest of a bundle, and in the metadata of Parquet files of codes."""
        return {"steps": [float(step) for step in self.steps]}

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self:
        """The grid of a bundle.

        Raises BundleError when the bundle was exported before there were grids.
        """
        if "codes" not in manifest:
            raise BundleError("the bundle has no grid for codes of one byte; export it anew, or ask for float32")
        return cls(steps=np.array(manifest["codes"]["steps"], np.float32))
