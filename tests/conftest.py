"""What all tests share."""

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures and weights; tests that need it are skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CNNJAX_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real pictures and weights not found at {folder}; set CNNJAX_SHARED_DATA")
    return folder
