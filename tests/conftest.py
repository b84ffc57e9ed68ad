"""What all tests share: no network, few threads, and the folder of real images."""

import os
from pathlib import Path

# Before anything imports them: neither library may call home from a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# One process a core (pytest -n auto), and one thread each: more of either only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Helpers are imported by tests; collected for doctests they would be imported, and register models, twice.
collect_ignore = [
    path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")
]

DATA_ROOT = Path(
    os.environ.get("VITSEG_ZOO_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with `oxford-iiit-pet`, `clothing`, `camvid` and `road`; tests skip where it is absent."""
    if not DATA_ROOT.is_dir():
        pytest.skip(
            f"real images are not at {DATA_ROOT}; set VITSEG_ZOO_TEST_DATA to the folder that has them"
        )
    return DATA_ROOT


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
