"""Fixtures that all tests share."""

import pytest

from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A saved tiny GPT-NeoX with its tokenizer; read only."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")
