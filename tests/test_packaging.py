"""What an installed package holds: every file that the code reads is declared."""

import configparser
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bitagent_jax"
DATA = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file())
DATA = [path for path in DATA if path.suffix not in (".py", ".pyc")]


@pytest.mark.parametrize("path", DATA, ids=str)
def test_every_file_beside_the_code_is_package_data(path):
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    patterns = setup["options.package_data"]["bitagent_jax"].split()
    assert any(path.match(pattern) for pattern in patterns), f"{path} is in none of {patterns}"
