import os

# Before torch is imported. One thread each: the tests themselves run side by side (pytest -n).
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
