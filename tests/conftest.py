"""Shared by all tests: shape checks of the package's annotations, and the real data beside the checkout."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from tests import shape_checks  # noqa: F401  # the hook finds it by its name

# The shapes in these modules' annotations are checked whenever a test calls their functions. (The metrics check the shapes
# that they are given themselves, with messages that tests look at.) Must come before the modules are imported.
install_import_hook(
    [
        "xaieval.data.preprocessing",
        "xaieval.explainers.cam",
        "xaieval.masking",
        "xaieval.models.attention",
        "xaieval.models.branch_stages",
        "xaieval.models.fpn",
        "xaieval.inference.targets",
    ],
    "tests.shape_checks.checked",
)

import torch  # noqa: E402  # the hook has to be in place first

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # shap's loops are short here, and take long to compile

# ultralytics looks for a network when it is imported, writes its settings into the home, and installs what it misses.
os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": tempfile.gettempdir()}

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which would be in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    torch.set_num_threads(1)

# The same examples in every run; --hypothesis-profile=default searches at random.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

SHARED = Path(os.environ.get("XAIEVAL_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_finish() -> None:
    """Leave all that was imported out of garbage collections, some of which the package and tests ask for."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave tests out that need a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


def _shared(path: str) -> Path:
    found = SHARED / path
    if not found.exists():
        if os.environ.get("XAIEVAL_REQUIRE_SHARED"):
            pytest.fail(f"{found} is missing, but XAIEVAL_REQUIRE_SHARED is set")
        pytest.skip(f"needs {path}, which is not part of the repository (XAIEVAL_SHARED names its folder)")
    return found


@pytest.fixture
def ucmerced_folder() -> Path:
    """The real UC Merced images."""
    return _shared("data/UCMerced_LandUse")


@pytest.fixture
def imagenet_weights() -> Path:
    """Real ImageNet weights of timm's mobilenetv2_100 with pad_type="same"."""
    return _shared("weights/mobilenetv2_100_imagenet.safetensors")
