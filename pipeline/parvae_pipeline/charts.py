"""Charts as inline SVG and images as PNG data, for a page that needs no other file and no script.

Colours are CSS variables of the page, so that every chart follows its light or dark scheme.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 42
COLORS = ("var(--first)", "var(--second)", "var(--third)")

Points = Sequence[tuple[float, float]]


class Frame:
    """The axes of one chart: scales, ticks and labels with units."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float], x_label: str, y_label: str) -> None:
        self.x_low, self.x_high = _widened(*x_range)
        self.y_low, self.y_high = _widened(*y_range)
        self.x_label, self.y_label = x_label, y_label
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        """Position in pixels, from the left."""
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Position in pixels, from the top."""
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def svg(self, x_ticks: Sequence[tuple[float, str]] | None = None) -> str:
        """The chart with what was added to it."""
        ticks = ticks_between(self.x_low, self.x_high) if x_ticks is None else x_ticks
        axes = []
        for value, text in ticks_between(self.y_low, self.y_high):
            y = self.y(value)
            axes.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            axes.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for value, text in ticks:
            axes.append(
                f'<text x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
                f"{html.escape(text)}</text>"
            )
        middle = (TOP + HEIGHT - BOTTOM) / 2
        labels = (
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">'
            f"{html.escape(self.x_label)}</text>"
            f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(self.y_label)}</text>"
        )
        name = html.escape(f"{self.y_label} against {self.x_label}", quote=True)
        body = "".join([*axes, *self.parts])
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{body}{labels}</svg>'


def line_chart(series: Sequence[tuple[str, Points]], *, x_label: str, y_label: str) -> str:
    """Named lines over one pair of axes; values that are far above the rest of a falling curve are cut off."""
    points = [point for _, line in series for point in line if all(map(math.isfinite, point))]
    if not points:
        return '<p class="quiet">nothing was recorded</p>'
    xs, ys = zip(*points, strict=True)
    high = float(np.quantile(ys, 0.97)) if len(ys) > 20 else max(ys)
    frame = Frame((min(xs), max(xs)), (min(ys), high), x_label, y_label)
    for (name, line), color in zip(series, COLORS, strict=False):
        kept = [(x, min(y, frame.y_high)) for x, y in line if math.isfinite(y)]
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in kept)
        frame.parts.append(
            f'<polyline class="line" style="stroke:{color}" points="{path}"><title>{name}</title></polyline>'
        )
    return legend([name for name, _ in series]) + frame.svg()


def bar_chart(groups: Sequence[tuple[str, Sequence[float]]], *, x_label: str, y_label: str) -> str:
    """Bars side by side for the heights of every labelled group."""
    high = max((max(heights) for _, heights in groups), default=1.0)
    frame = Frame((0.0, float(max(1, len(groups)))), (0.0, high), x_label, y_label)
    frame.x_low, frame.x_high, frame.y_low = 0.0, float(max(1, len(groups))), min(0.0, frame.y_low)
    for index, (name, heights) in enumerate(groups):
        size = 0.8 / len(heights)
        for position, height in enumerate(heights):
            left, right = (frame.x(index + 0.1 + size * step) for step in (position, position + 1))
            top, bottom = sorted((frame.y(height), frame.y(0.0)))
            frame.parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(0.5, right - left - 0.5):.1f}" '
                f'height="{bottom - top:.1f}" style="fill:{COLORS[position]}">'
                f"<title>{html.escape(name)}: {height:.4g}</title></rect>"
            )
    every = -(-len(groups) // 5) or 1
    ticks = [(index + 0.5, _short(groups[index][0])) for index in range(0, len(groups), every)]
    return frame.svg(ticks)


def scatter_chart(points: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str) -> str:
    """Named points between 0 and 1 on both axes, with the diagonal on which both agree."""
    frame = Frame((0.0, 1.0), (0.0, 1.0), x_label, y_label)
    corners = (frame.x(0), frame.y(0), frame.x(1), frame.y(1))
    frame.parts.append('<line class="diagonal" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*corners))
    for x, y, name in points:
        title = html.escape(f"{name}: {x:.2f}, {y:.2f}")
        circle = f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4"><title>{title}</title></circle>'
        frame.parts.append(circle)
    return frame.svg()


def legend(names: Sequence[str]) -> str:
    """Which colour is what."""
    keys = "".join(
        f'<span><i style="background:{color}"></i>{html.escape(name)}</span>'
        for name, color in zip(names, COLORS, strict=False)
    )
    return f'<div class="legend">{keys}</div>'


def image_grid(images: NDArray[np.uint8], *, num_columns: int, alt: str) -> str:
    """Images (n, H, W, C) in a grid, as one PNG inside the page."""
    count, height, width, channels = images.shape
    num_rows = -(-count // num_columns)
    padded = np.zeros((num_rows * num_columns, height + 2, width + 2, channels), np.uint8)
    padded[:count, 1:-1, 1:-1] = images
    grid = padded.reshape(num_rows, num_columns, height + 2, width + 2, channels).swapaxes(1, 2)
    flat = grid.reshape(num_rows * (height + 2), num_columns * (width + 2), channels)
    data = base64.b64encode(png(np.ascontiguousarray(flat))).decode()
    scale = max(1, min(4, 720 // flat.shape[1]))
    size = f'width="{flat.shape[1] * scale}" height="{flat.shape[0] * scale}"'
    return f'<img class="grid-image" {size} alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 1 or 3) as a PNG file (ISO/IEC 15948: chunks of length, type, data, CRC; each line with filter type 0)."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def ticks_between(low: float, high: float) -> list[tuple[float, str]]:
    """About five round values from low to high, with their text."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    decimals = max(0, -math.floor(math.log10(step)))
    first = math.ceil(low / step)
    values = [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value:,.{min(decimals, 6)}f}") for value in values]


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _short(text: str) -> str:
    return text if len(text) <= 10 else text[:9] + "…"
