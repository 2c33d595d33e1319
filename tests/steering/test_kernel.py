"""Steering moves a token and keeps its length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.kernel import renormalised_add

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def hidden_of(dtype: torch.dtype, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return (torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_whose_delta_is_zero_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    hidden = hidden_of(dtype)
    delta = torch.randn(4, 7, 32)
    delta[1:3, 2:5] = 0.0
    moved = renormalised_add(hidden, delta)
    assert moved.dtype == dtype
    assert torch.equal(moved[1:3, 2:5], hidden[1:3, 2:5])
    assert not torch.equal(moved[0, 0], hidden[0, 0])


@given(st.integers(0, 10_000), st.floats(-50, 50), st.floats(0.01, 1000))
def test_every_token_keeps_its_length(seed: int, strength: float, scale: float) -> None:
    hidden = hidden_of(torch.float32, seed, scale)
    moved = renormalised_add(
        hidden, strength * torch.randn(32, generator=torch.Generator().manual_seed(seed))
    )
    assert torch.allclose(moved.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-5)


def test_it_is_the_papers_formula() -> None:
    hidden, delta = torch.randn(5, 16, dtype=torch.float64).float(), torch.randn(5, 16)
    for token, (h, d) in enumerate(zip(hidden.double(), delta.double(), strict=True)):
        expected = (h + d) * h.norm() / (h + d).norm()
        assert torch.allclose(renormalised_add(hidden, delta)[token].double(), expected, rtol=1e-5, atol=1e-6)


def test_norms_are_taken_in_float32_where_float16_would_overflow() -> None:
    hidden = torch.full((1, 64), 60000.0, dtype=torch.float16)
    moved = renormalised_add(hidden, torch.ones(64) * 100)
    assert torch.isfinite(moved).all()


def test_a_delta_that_cancels_the_token_leaves_it_where_it_was() -> None:
    hidden = torch.randn(3, 8)
    assert torch.equal(renormalised_add(hidden, -hidden), hidden)


def test_a_token_of_length_zero_stays_zero() -> None:
    assert torch.equal(renormalised_add(torch.zeros(2, 8), torch.ones(8)), torch.zeros(2, 8))
