"""One thread: the machines that run the tests are shared, and sums then come in one order."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script, and so in what tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The gate gives one answer for one tree, also on a machine that is busy with something else.
hypothesis.settings.register_profile("gate", derandomize=True, deadline=None)
hypothesis.settings.load_profile("gate")

# Files whose few tests take long, as they start programs: begun first, lest one process has them left at the end.
LONG = ("sweep", "executors", "evaluate", "learn", "ranks", "rollouts", "determinism", "report")


def pytest_collection_modifyitems(items: list[pytest.Item]):
    order = [f"test_{name}.py" for name in LONG]
    items.sort(key=lambda item: order.index(item.path.name) if item.path.name in order else len(order))


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    """Decoded images of the tests' own trees do not go into the user's cache."""
    before = os.environ.get("PRUNE_ENV_CACHE")
    os.environ["PRUNE_ENV_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["PRUNE_ENV_CACHE"]
    else:
        os.environ["PRUNE_ENV_CACHE"] = before


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture
def one_thread():
    """As in a worker process, and back, whatever a test sets in between."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
