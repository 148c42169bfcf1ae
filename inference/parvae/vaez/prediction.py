"""Images as differences from what their neighbours foretell, and back; bytes in, bytes out, modulo 256.

A channel is first taken as its difference from the one before it, then an element as its difference from the median of
left, above and left + above - above-left (M. Weinberger, G. Seroussi, G. Sapiro, "The LOCO-I lossless image compression
algorithm", IEEE Transactions on Image Processing 2000). Outside of the image all is 0. Differences near 0, of either
sign, become small numbers.

Letters in shapes: n images, h height, w width, c channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def differences_of(images: Bytes) -> Bytes:
    """(n, h, w, c) numbers that `images_from` takes back to the images (n, h, w, c)."""
    planes = images.copy()
    planes[..., 1:] -= images[..., :-1]
    padded = np.zeros((len(images), images.shape[1] + 1, images.shape[2] + 1, images.shape[3]), np.int16)
    padded[:, 1:, 1:] = planes
    foretold = median(padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1])
    away = planes - foretold.astype(np.uint8)
    folded: Bytes = np.bitwise_xor(away << 1, -(away >> 7))
    return folded


def images_from(differences: Bytes) -> Bytes:
    """The images (n, h, w, c) that `differences_of` took apart; one diagonal of all images at a time."""
    num_images, height, width, channels = differences.shape
    away = ((differences >> 1) ^ -(differences & 1)).transpose(1, 2, 3, 0).reshape(height, width, -1)
    padded = np.zeros((height + 1, width + 1, channels * num_images), np.uint8)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, above, corner = (padded[y + down, x + right].astype(np.int16) for down, right in ((1, 0), (0, 1), (0, 0)))
        padded[y + 1, x + 1] = away[y, x] + median(left, above, corner).astype(np.uint8)
    planes = padded[1:, 1:].reshape(height, width, channels, num_images).transpose(3, 0, 1, 2)
    return np.cumsum(planes, axis=3, dtype=np.uint8)


def median(left: NDArray[np.int16], above: NDArray[np.int16], corner: NDArray[np.int16]) -> NDArray[np.int16]:
    """Of left, above and left + above - corner."""
    lower, upper = np.minimum(left, above), np.maximum(left, above)
    foretold: NDArray[np.int16] = np.clip(left + above - corner, lower, upper)
    return foretold
