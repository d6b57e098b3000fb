"""The memory that is left, as the system's files tell it."""

import os

from ndsm_jax import machine


def test_memory_is_that_of_the_machine():
    """Between nothing and all that there is."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine.available_memory() < total


def test_the_smaller_of_machine_and_control_group_counts(monkeypatch):
    group = "/sys/fs/cgroup/memory."
    files = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    100 kB\n",
        f"{group}max": "70000\n",
        f"{group}current": "30000\n",
        f"{group}stat": "anon 20000\ninactive_file 5000\n",
    }
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path, ""))
    assert machine.available_memory() == 45_000
    files[f"{group}max"] = "max\n"
    assert machine.available_memory() == 102_400
    files.clear()
    assert machine.available_memory() == float("inf")
    assert machine.in_words(3e9) == "3 GB"
    assert machine.in_words(2.5e6) == "2 MB"
