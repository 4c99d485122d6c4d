import os

# Before torch is imported: two cores are shared by whatever else runs.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))
