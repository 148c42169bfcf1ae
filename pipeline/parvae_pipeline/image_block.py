"""The block of one image column: pixels in, a mixture of discretised logistics, pixels out."""

from __future__ import annotations

import torch
from torch import Tensor

from parvae.schema import ImageFacts, Input
from parvae_pipeline.block import Block
from parvae_pipeline.image_likelihood import LogisticMixture
from parvae_pipeline.likelihoods import textbook_likelihood


class ImageBlock(Block):
    """One image column (B, H, W, C) uint8, in channel-first order inside."""

    def __init__(self, block: Input, num_rows: int, likelihood: str = "auto") -> None:
        super().__init__(block)
        facts = block.columns[0].facts_as(ImageFacts)
        self.height, self.width, self.channels = facts.height, facts.width, facts.channels
        self.num_values = self.num_features = facts.height * facts.width * facts.channels
        self.mean_pixel, self.stddev_pixel = facts.mean, facts.stddev or 1.0
        num_pixels = self.height * self.width
        moments = (self.mean_pixel, self.stddev_pixel)
        if likelihood != "auto":
            self.likelihood = textbook_likelihood(likelihood, self.num_values, moments, 255.0)
        else:
            self.likelihood = LogisticMixture(self.channels, num_pixels, mean=moments[0], stddev=moments[1])
        self.num_maps = self.likelihood.num_parameters // num_pixels
        """Decoder outputs for every pixel."""

    def target(self, raw: Tensor) -> tuple[Tensor, None]:
        return raw.permute(0, 3, 1, 2).reshape(-1, self.num_values).float(), None

    def features(self, raw: Tensor) -> Tensor:
        return (self.target(raw)[0] - self.mean_pixel) / self.stddev_pixel

    def to_data_units(self, values: Tensor, *, drawn: bool) -> Tensor:
        pixels = values.reshape(-1, self.channels, self.height, self.width).permute(0, 2, 3, 1)
        return torch.round(pixels).clamp(0.0, 255.0).to(torch.uint8)
