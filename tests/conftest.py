"""What the unit tests share."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

# One thread, as the Makefile says: then nothing is measured, and the user's cache stays as it is.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine must not fail a property test, and CI must fail the same way twice.
settings.register_profile(
    "labkit",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("labkit")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium browser.  Without one the test skips; in CI it is an error."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if "CI" in os.environ:
        pytest.fail("no chromium, and CI must run the browser tests: apt-get install chromium")
    pytest.skip("no chromium found")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many planted mistakes each exercise's check named."""
    ids = [each.nodeid for each in terminalreporter.stats.get("passed", [])]
    found = [re.search(r"::test_the_check_names_the_mistake\[(.+)-", each) for each in ids]
    counts = Counter(match[1] for match in found if match)
    if counts:
        terminalreporter.section(f"{counts.total()} planted mistakes named by {len(counts)} checks")
        terminalreporter.write_line(", ".join(f"{name} {count}" for name, count in counts.items()))
