# SPDX-License-Identifier: Apache-2.0
"""Show the result of a soak at the end, from any process."""


def pytest_terminal_summary(terminalreporter):
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, table in getattr(report, 'user_properties', []):
                if name == 'soak' and report.when == 'call':
                    terminalreporter.section('soak')
                    terminalreporter.write_line(table)
