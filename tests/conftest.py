"""One numerical climate for every test: fixed seeds, few threads, deterministic kernels, no network."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

WORKER = "PYTEST_XDIST_WORKER" in os.environ

# These are read when the libraries load (and by the processes that tests start), hence before any of them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # for `from tests.support import ...`

torch.set_num_threads(1)  # the tensors are tiny; two pytest workers share two cores
torch.use_deterministic_algorithms(True)

# derandomize: a failure seen once is seen by everyone. too_slow would measure the first call of a torch kernel.
settings.register_profile(
    "maskgen", derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("maskgen")


@pytest.fixture(autouse=True)
def numerics() -> Iterator[None]:
    """Start from the same random state, and give back the global numerical settings a test may have changed."""
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_float32_matmul_precision(precision)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test, and no process it starts, asks the hub for anything."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps device, precision and gradient state in singletons; the next test must not inherit them."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
