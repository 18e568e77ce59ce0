"""Where numbers live: the one choice of device and element type, and how many threads there are."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from schemas.settings import Settings

DTYPES = {"auto": torch.float64, "float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Place:
    """A device and the floating-point format of everything computed there."""

    device: torch.device
    dtype: torch.dtype


def prepare(settings: Settings) -> None:
    """Set what holds for the whole process: threads, and full precision of float32 products."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(settings.threads or max(1, cores // settings.workers))
    torch.set_num_interop_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def choose(settings: Settings, precision: Literal["auto", "float64", "float32"]) -> Place:
    """Pick CUDA when it is there, unless the settings say otherwise; float64 unless asked."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return Place(torch.device(name), DTYPES[precision])
