"""Cutting rows into padded batches loses none and keeps the bound."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from emostream.model.batching import cut_by_cost, pad_rows, padded_width


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(64, 4096))
def test_every_row_once_and_within_cost(lengths: list[int], most_tokens: int) -> None:
    groups = list(cut_by_cost(lengths, most_tokens=most_tokens))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        width = max(padded_width(lengths[index]) for index in group)
        assert len(group) == 1 or width * len(group) <= most_tokens


def test_rows_are_filled_with_the_pad_id() -> None:
    ids = pad_rows([(5, 6), (7,)], pad_id=1)
    assert torch.equal(ids, torch.tensor([[5, 6, 1, 1], [7, 1, 1, 1]]))
