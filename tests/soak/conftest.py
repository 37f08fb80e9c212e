# SPDX-License-Identifier: Apache-2.0
"""What a soak has come to is shown at the end, whichever process it ran in."""


def pytest_terminal_summary(terminalreporter):
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, table in getattr(report, 'user_properties', []):
                if name == 'soak' and report.when == 'call':
                    terminalreporter.section('soak')
                    terminalreporter.write_line(table)
