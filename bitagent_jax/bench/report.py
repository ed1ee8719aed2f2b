"""What every benchmark prints: one table, and JSON lines that also name machine, versions and date."""

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def facts(packages: Sequence[str], **more: Any) -> dict[str, Any]:
    """Describe this run: date, processor, cores that may be used, Python, versions of packages, and ``more``."""
    versions = {name: _version(name) for name in packages}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = dict(processor=_processor(), cores=cores, python=platform.python_version())
    return dict(date=datetime.date.today().isoformat(), **machine, versions=versions, **more)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out rows of equal keys as a Markdown table; floats get three significant digits, None is a dash."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def json_lines(bench: str, rows: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> str:
    """Return one JSON object a row: ``bench``, the row and the facts of the run."""
    return "\n".join(json.dumps({"bench": bench, **row, **told}) for row in rows)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # this package, run from a copy of its folder
        return "not installed"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
