"""Files: written so that a reader, or the next start after a kill, finds all or nothing; and imported by path."""

import importlib.util
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Create or replace a file all at once: under a hidden temporary name first, then renamed.

    Args:
        path: the file; its folder is made if missing.
        write: is given the open temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def import_file(path: str) -> ModuleType:
    """Run a Python file as a module of a name made of its path.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a file of another kind.
    """
    name = "bitagent_file_" + re.sub(r"\W", "_", path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
