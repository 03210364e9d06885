"""Fixtures that the tests of both packages share."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the development data beside the project, or skip with the reason."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip(f"development data not found at {path}")
    return path


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Return the pretrained ViT-S/14 beside the project, or skip with the reason."""
    path = SHARED / "weights" / "vit_small_patch14_dinov2.fp16.safetensors"
    if not path.is_file():
        pytest.skip(f"pretrained weights not found at {path}")
    return path
