# SPDX-License-Identifier: Apache-2.0
"""Run pytest in this process, on tests in another folder."""

from __future__ import annotations

import os
import pathlib
import sys
import unittest.mock

import pytest


class Results:
    """A plugin of pytest: the outcomes of its tests, by name."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition('::')[2]
        if report.failed:
            self.failed[name] = report.longreprtext
        elif report.when == 'call':
            self.passed.append(name)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = report.longreprtext


def run(folder: pathlib.Path, *tests: str) -> Results:
    """Run the tests of a folder, all or some. Their imported modules are removed afterwards."""
    results = Results()
    (folder / 'pytest.ini').write_text('[pytest]\n')
    plugins = ['-p', 'no:cacheprovider', '--quiet', '--tb', 'line']
    place = ['--rootdir', str(folder), '--basetemp', str(folder.parent / 'inner')]
    before, here = set(sys.modules), os.getcwd()
    os.chdir(folder)
    try:
        # The installed plugins are not needed.
        with unittest.mock.patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD='1'):
            pytest.main([*plugins, *place, *tests], plugins=[results])
    finally:
        os.chdir(here)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], '__file__', None)
            if file and pathlib.Path(file).is_relative_to(folder):
                del sys.modules[name]
    return results
