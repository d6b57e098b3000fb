"""The counts of the inputs tried, in the summary."""

from typing import Any

from tests.fuzz.trial import COUNTS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    families = sorted({family for family, _ in COUNTS})
    if not families:
        return
    rows = [(f, COUNTS[f, "refused"], COUNTS[f, "taken"]) for f in families]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    terminalreporter.section("inputs tried")
    terminalreporter.write_line(f"{'':32} {'refused':>8} {'taken':>8}")
    for family, refused, taken in rows:
        terminalreporter.write_line(f"{family:32} {refused:8} {taken:8}")
