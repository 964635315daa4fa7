"""One seed, one thread, and the markers `slow` and `gpu`."""

import gc

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure() -> None:
    # small tensors: more threads only make the suite slower, and its sums less repeatable
    torch.set_num_threads(1)
    gc.set_threshold(100_000)  # nearly all that tests make is freed without a search for cycles


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    skip_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "slow" in (mark.name for mark in item.iter_markers()) and not config.getoption("--slow"):
            item.add_marker(skip_slow)
        if "gpu" in (mark.name for mark in item.iter_markers()) and not torch.cuda.is_available():
            item.add_marker(skip_gpu)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch before every test."""
    torch.manual_seed(0)
    return 0
