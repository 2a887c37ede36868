"""The marker, and the line about tests that were run again."""

from __future__ import annotations

import pytest

rerun_lines = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[rerun_lines] = []
    config.addinivalue_line(
        "markers", "conformance: the interpreter's own asyncio tests on this loop; takes minutes"
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if lines := config.stash[rerun_lines]:
        terminalreporter.section("asyncio tests that were run again alone")
        for line in lines:
            terminalreporter.line(line)
