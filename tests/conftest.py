"""Fixtures that all tests share."""

import pytest
from jaxtyping import install_import_hook

# The shapes in attribution's signatures are checked at run time, in tests only: the hook must come before any import.
install_import_hook("quantascope.attribution", "beartype.beartype")

from tests.tiny import save_tiny  # noqa: E402 - after the hook


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A saved tiny GPT-NeoX with its tokenizer; read only."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")
