"""Where the arithmetic happens: the processor, or one GPU a process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from parvae.errors import SettingError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""

CPU = torch.device("cpu")


def choose_device(name: str) -> torch.device:
    """The device that `train.device` names; "auto" takes a GPU where there is one.

    Raises SettingError when a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingError("train.device is 'cuda', but torch finds no CUDA device here; take 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one, up to 1 GiB.

    By default it goes back to the system and is faulted in anew: 15 % fewer rows/s of an image network on one core.
    """
    # Other C libraries have no such call, and no such habit.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the largest that glibc takes


def placed(batches: Iterator[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The same batches on `device`, copied one ahead of the step that takes them."""
    if device.type == "cpu":
        yield from batches
        return
    waiting = None
    for batch in batches:
        ready, waiting = waiting, _copied(batch, device)
        if ready is not None:
            yield ready
    if waiting is not None:
        yield waiting


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _copied(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    # Only a copy from pinned memory runs beside the arithmetic; torch holds the memory until it is done.
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
