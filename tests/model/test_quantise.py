"""int8 rows: small on disk, near the weights they stand for."""

import torch

from emostream.model.quantise import quantise_rows, widen_rows


def test_error_is_at_most_half_a_step_of_its_row() -> None:
    torch.manual_seed(3)
    weight = torch.randn(64, 128) * torch.logspace(-3, 2, 64).unsqueeze(1)
    state = {"w": weight, "b": torch.randn(64), "kernel": torch.randn(8, 3, 3, 3)}
    restored = widen_rows(quantise_rows(state))
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((restored["w"] - weight).abs() <= step / 2 * (1 + 1e-5)).all()
    assert torch.equal(restored["b"], state["b"])
    assert restored["kernel"].shape == (8, 3, 3, 3)
    torch.testing.assert_close(restored["kernel"], state["kernel"], rtol=1e-3, atol=1e-6)


def test_a_row_of_zeros_stays_zero() -> None:
    restored = widen_rows(quantise_rows({"w": torch.zeros(2, 4)}))
    assert torch.equal(restored["w"], torch.zeros(2, 4))


def test_matrices_take_a_byte_a_weight() -> None:
    stored = quantise_rows({"w": torch.randn(10, 100)})
    assert stored["w"].dtype == torch.int8
    assert sum(tensor.nbytes for tensor in stored.values()) == 1000 + 40
