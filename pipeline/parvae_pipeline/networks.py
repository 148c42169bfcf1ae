"""Networks: the layers between features and latent code, and back. They know nothing of columns or densities.

Letters in shapes: B rows, F features, W hidden units, L latent dimensions, P decoder outputs, (C, H, W) image.
No batch normalisation (a row must not depend on its batch mates) and no transposed convolution (checkerboards, and no
int8 kernel in onnxruntime).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a network must fit."""

    latent_size: int
    num_features: int
    """F: encoder features, those of an image last."""
    num_parameters: int
    """P: decoder outputs, those of an image last."""
    width: int
    depth: int
    channels: int
    image: tuple[int, int, int] | None
    """(channels, height, width) when the last features are the pixels of an image."""
    image_maps: int
    """Decoder outputs for every pixel."""


class GatedResidual(nn.Module):
    """h + a * sigmoid(b) with (a, b) one linear map of the normalised h (gated units: Dauphin et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor) -> Tensor:
        return h + functional.glu(self.linear(self.norm(h)), dim=1)


class GatedResidualStack(nn.Module):
    """(B, in) -> (B, W): a gated linear layer and `depth - 1` gated residual layers."""

    dropout = 0.0
    """Share of the units of every layer that a training step leaves out (Srivastava et al. 2014)."""

    def __init__(self, num_inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.entry = nn.Linear(num_inputs, 2 * width)
        self.layers = nn.ModuleList(GatedResidual(width) for _ in range(depth - 1))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self._dropped(functional.glu(self.entry(x), dim=1))
        for layer in self.layers:
            h = self._dropped(layer(h))
        return h

    def _dropped(self, h: Tensor) -> Tensor:
        return functional.dropout(h, self.dropout) if self.dropout else h


class TableEncoder(nn.Module):
    """(B, F) -> posterior mean and log-variance, (B, L) each. With depth 0 it is linear."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.body = _stack(size.num_features, size)
        self.head = PosteriorHead(size.width if size.depth else size.num_features, size.latent_size)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.head(self.body(features))
        return mean, log_variance


class TableDecoder(nn.Module):
    """(B, L) -> (B, P). With depth 0 it is linear."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.body = _stack(size.latent_size, size)
        self.head = nn.Linear(size.width if size.depth else size.latent_size, size.num_parameters)

    def forward(self, z: Tensor) -> Tensor:
        parameters: Tensor = self.head(self.body(z))
        return parameters

    def start_at(self, parameters: Tensor) -> None:
        """Begin with these outputs (P,) for every row."""
        _start_at(self.head, parameters)

    @property
    def code_layers(self) -> list[nn.Linear]:
        """The layers that take the code."""
        return [self.body.entry if isinstance(self.body, GatedResidualStack) else self.head]


class PosteriorHead(nn.Module):
    """(B, W) -> mean and log-variance (B, L) each."""

    def __init__(self, width: int, latent_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * latent_size)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.linear(h).chunk(2, dim=1)
        # Smoothly bounded to (-12, 4): a variance beyond is a numerical accident, not knowledge.
        return mean, 8.0 * torch.tanh((log_variance + 4.0) / 8.0) - 4.0

    @torch.no_grad()
    def hold(self, dimensions: Tensor, mean: Tensor, log_variance: Tensor) -> None:
        """Give `dimensions` (D,) of every code the same `mean` and `log_variance` (D,)."""
        others = dimensions + self.linear.out_features // 2
        self.linear.weight[torch.cat([dimensions, others])] = 0.0
        self.linear.bias[dimensions] = mean
        self.linear.bias[others] = 8.0 * torch.atanh(((log_variance + 4.0) / 8.0).clamp(-0.999, 0.999)) - 4.0


class SpaceToDepth(nn.Module):
    """(B, C, H, W) -> (B, 4C, H/2, W/2). torch's PixelUnshuffle does nothing to a batch of 0 rows."""

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        parts = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return parts.reshape(rows, 4 * channels, height // 2, width // 2)


class DepthToSpace(nn.Module):
    """(B, 4C, H, W) -> (B, C, 2H, 2W), the inverse of SpaceToDepth."""

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        parts = x.reshape(rows, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(rows, channels // 4, 2 * height, 2 * width)


class ConvResidual(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution started small."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(functional.silu(self.first(functional.silu(x))))
        return x + change


class ImageEncoder(nn.Module):
    """(B, F) with the pixels last -> posterior mean and log-variance, (B, L) each.

    All work happens at half and quarter resolution: a space-to-depth stem, never a 3x3 convolution at full size. Sizes
    that are no multiple of 4 are padded on the right and below.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        assert size.image is not None
        self.channels, self.height, self.width = size.image
        self.num_pixels = math.prod(size.image)
        quarter = (-(-self.height // 4), -(-self.width // 4))
        self.padding = (0, 4 * quarter[1] - self.width, 0, 4 * quarter[0] - self.height)
        fine, coarse = size.channels, 2 * size.channels
        self.body = nn.Sequential(
            SpaceToDepth(),
            nn.Conv2d(4 * self.channels, fine, 3, padding=1),
            ConvResidual(fine),
            SpaceToDepth(),
            nn.Conv2d(4 * fine, coarse, 1),
            ConvResidual(coarse),
            nn.SiLU(),
        )
        num_others = size.num_features - self.num_pixels
        self.others = GatedResidualStack(num_others, size.width, max(size.depth, 1)) if num_others else None
        width = coarse * quarter[0] * quarter[1] + (size.width if num_others else 0)
        self.mix = GatedResidualStack(width, size.width, 1)
        self.head = PosteriorHead(size.width, size.latent_size)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        pixels = features[:, features.shape[1] - self.num_pixels :]
        image = pixels.reshape(-1, self.channels, self.height, self.width)
        h = self.body(functional.pad(image, self.padding)).flatten(1)
        if self.others is not None:
            h = torch.cat([h, self.others(features[:, : features.shape[1] - self.num_pixels])], dim=1)
        mean, log_variance = self.head(self.mix(h))
        return mean, log_variance


class ImageDecoder(nn.Module):
    """(B, L) -> (B, P), the parameters of the image last: upsample and convolve, pixels by depth-to-space."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        assert size.image is not None
        _, self.height, self.width = size.image
        self.quarter = (-(-self.height // 4), -(-self.width // 4))
        fine, coarse = size.channels, 2 * size.channels
        maps = size.image_maps
        self.coarse = coarse
        self.entry = nn.Linear(size.latent_size, coarse * self.quarter[0] * self.quarter[1])
        self.body = nn.Sequential(
            ConvResidual(coarse),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(coarse, fine, 3, padding=1),
            ConvResidual(fine),
            nn.SiLU(),
            nn.Conv2d(fine, 4 * maps, 3, padding=1),
            DepthToSpace(),
        )
        num_others = size.num_parameters - maps * self.height * self.width
        self.others = _TableHead(size, num_others) if num_others else None
        self.bias = nn.Parameter(torch.zeros(maps * self.height * self.width))

    def forward(self, z: Tensor) -> Tensor:
        h = self.entry(z).reshape(-1, self.coarse, *self.quarter)
        image = self.body(h)[:, :, : self.height, : self.width].flatten(1) + self.bias
        return image if self.others is None else torch.cat([self.others(z), image], dim=1)

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """Begin near these outputs (P,) for every row."""
        num_others = len(parameters) - len(self.bias)
        last = self.body[-2]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        last.weight.mul_(0.1)
        last.bias.zero_()
        self.bias.copy_(parameters[num_others:])
        if self.others is not None:
            _start_at(self.others.head, parameters[:num_others])

    @property
    def code_layers(self) -> list[nn.Linear]:
        """The layers that take the code."""
        return [self.entry] if self.others is None else [self.entry, self.others.body.entry]


class _TableHead(nn.Module):
    """(B, L) -> (B, P) for the columns beside an image."""

    def __init__(self, size: Size, num_parameters: int) -> None:
        super().__init__()
        self.body = GatedResidualStack(size.latent_size, size.width, max(size.depth, 1))
        self.head = nn.Linear(size.width, num_parameters)

    def forward(self, z: Tensor) -> Tensor:
        parameters: Tensor = self.head(self.body(z))
        return parameters


Encoder = TableEncoder | ImageEncoder
Decoder = TableDecoder | ImageDecoder

NETWORKS: Mapping[str, tuple[Callable[[Size], Encoder], Callable[[Size], Decoder]]] = {
    "table": (TableEncoder, TableDecoder),
    "image": (ImageEncoder, ImageDecoder),
}


def set_dropout(network: nn.Module, share: float) -> None:
    """Have every stack of hidden layers in `network` leave out this share of its units."""
    for module in network.modules():
        if isinstance(module, GatedResidualStack):
            module.dropout = share


def _stack(num_inputs: int, size: Size) -> nn.Module:
    return GatedResidualStack(num_inputs, size.width, size.depth) if size.depth else nn.Identity()


@torch.no_grad()
def _start_at(head: nn.Linear, parameters: Tensor) -> None:
    head.weight.mul_(0.1)
    head.bias.copy_(parameters)
