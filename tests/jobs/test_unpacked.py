import pytest
import torch
from transformers import masking_utils

from quantascope.jobs.models.unpacked import one_text_per_row

PACKED = torch.tensor([[0, 1, 2, 0, 1]])


def test_transformers_is_not_asked_within_and_as_before_afterwards():
    before = masking_utils.find_packed_sequence_indices
    assert before(PACKED).tolist() == [[0, 0, 0, 1, 1]]
    with one_text_per_row():
        assert masking_utils.find_packed_sequence_indices(PACKED) is None
    with pytest.raises(KeyError), one_text_per_row():
        raise KeyError
    assert masking_utils.find_packed_sequence_indices is before


def test_a_version_that_does_not_ask_is_left_alone(monkeypatch):
    monkeypatch.delattr(masking_utils, "find_packed_sequence_indices")
    with one_text_per_row():
        assert not hasattr(masking_utils, "find_packed_sequence_indices")
