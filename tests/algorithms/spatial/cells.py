"""Real cells measured in two ways, for tests that run where the data are."""

import numpy as np
import pytest
import torch

from bench.multiomics import ABSENT, FOLDER


def cells(name, source, target):
    """Read both modalities and the labels, or skip and say why."""
    if not FOLDER.is_dir():
        pytest.skip(ABSENT)
    data = np.load(FOLDER / f"{name}.npz", allow_pickle=True)
    return [torch.tensor(data[key].astype(float)) for key in (source, target, "labels")]
