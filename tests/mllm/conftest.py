"""What the tests of CLIP, ported and in torch, share."""

import parity
import pytest


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A folder like a downloaded one: config, weights, preprocessor, tokenizer, of a tiny random model."""
    folder = tmp_path_factory.mktemp("clip")
    parity.tiny_clip(folder)
    return folder
