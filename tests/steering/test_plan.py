"""The bank keeps what is in flight; a batch's steering is the sum of its terms."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.plan import BatchRow, DeltaBank, HeldPlan, hold, let_go, steering_batch
from steering.types import Positions, SteeringPlan, SteeringTerm, SteeringVectors

CPU = torch.device("cpu")
SIZE = 8


def vectors(name: str, layers: Mapping[int, float]) -> SteeringVectors:
    deltas = {layer: torch.full((SIZE,), value) for layer, value in layers.items()}
    return SteeringVectors(name, 1, name, deltas)


def term(of: SteeringVectors, strength: float, positions: Positions = "all") -> SteeringTerm:
    return SteeringTerm(of, strength, of.layers, positions)


def row(held: HeldPlan, first: int, start: int, count: int, prompt_length: int) -> BatchRow:
    return BatchRow(held, first, start, count, prompt_length)


def test_a_bank_evicts_the_least_recently_used_that_nobody_holds() -> None:
    bank = DeltaBank(2, SIZE, CPU)
    first, second, third = (vectors(name, {0: 1.0}) for name in ("first", "second", "third"))
    rows = {name: bank.acquire(of) for name, of in (("first", first), ("second", second))}
    bank.release(second)
    assert bank.acquire(third) == rows["second"]
    assert bank.acquire(first) == rows["first"]


def test_an_evicted_row_leaves_nothing_of_itself_behind() -> None:
    bank = DeltaBank(1, SIZE, CPU)
    old = vectors("old", {0: 5.0, 1: 5.0})
    bank.acquire(old)
    bank.release(old)
    row_of_new = bank.acquire(vectors("new", {1: 2.0}))
    assert bank.compose(0, [[row_of_new]], [[1.0]]).abs().sum() == 0
    assert torch.equal(bank.compose(1, [[row_of_new]], [[1.0]]), torch.full((1, SIZE), 2.0))


def test_strengths_take_no_place_in_the_bank() -> None:
    bank, of = DeltaBank(1, SIZE, CPU), vectors("only", {0: 1.0})
    held = [hold(SteeringPlan((term(of, strength / 100),)), bank) for strength in range(1, 300)]
    assert {one.moving[0].row for one in held} == {1}
    for one in held:
        let_go(one, bank)
    bank.acquire(vectors("other", {0: 1.0}))


def test_a_batch_adds_up_the_terms_of_each_request_at_its_own_tokens() -> None:
    bank = DeltaBank(4, SIZE, CPU)
    low, high = vectors("low", {0: 1.0, 1: 10.0}), vectors("high", {1: 100.0})
    both = hold(SteeringPlan((term(low, 0.5), term(high, 2.0))), bank)
    none = hold(SteeringPlan(), bank)
    batch = steering_batch([row(none, 0, 0, 2, 2), row(both, 2, 0, 2, 2)], 4, bank)
    assert batch.steered_tokens == ((), (2, 2))
    for layer, expected in ((0, 0.5), (1, 0.5 * 10 + 2 * 100)):
        found = batch.layers[layer]
        assert found.tokens is not None
        assert found.tokens.tolist() == [2, 3]
        delta = found.delta if found.owner is None else found.delta[found.owner]
        assert torch.equal(delta, torch.full((2, SIZE), expected))


@pytest.mark.parametrize(
    ("positions", "start", "count", "expected"),
    [
        ("all", 0, 6, [0, 1, 2, 3, 4, 5]),
        ("prompt", 0, 6, [0, 1, 2, 3]),
        ("generated", 0, 6, [4, 5]),
        ("prompt", 3, 3, [0]),
        ("generated", 3, 3, [1, 2]),
        ("prompt", 4, 1, []),
        ("generated", 2, 2, []),
    ],
)
def test_positions_split_at_the_prompts_end(
    positions: Positions, start: int, count: int, expected: list[int]
) -> None:
    bank = DeltaBank(1, SIZE, CPU)
    held = hold(SteeringPlan((term(vectors("only", {0: 1.0}), 1.0, positions),)), bank)
    batch = steering_batch([row(held, 0, start, count, 4)], count, bank)
    assert batch.steered_tokens == ((len(expected),),)
    found = batch.layers.get(0)
    tokens = [] if found is None else list(range(count)) if found.tokens is None else found.tokens.tolist()
    assert tokens == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-2, 2), st.integers(1, 5)), min_size=1, max_size=6))
def test_any_batch_equals_the_sum_written_out(rows: list[tuple[int, float, int]]) -> None:
    bank = DeltaBank(8, SIZE, CPU)
    known = [vectors(f"v{n}", {layer: float(n + layer + 1) for layer in range(n + 1)}) for n in range(4)]
    total = sum(count for _, _, count in rows)
    held_rows, first = [], 0
    expected = torch.zeros(4, total, SIZE)
    for which, strength, count in rows:
        plan = SteeringPlan((term(known[which], strength), term(known[0], 0.25)))
        held_rows.append(row(hold(plan, bank), first, 0, count, count))
        for layer in range(4):
            for t in plan.terms:
                if layer in t.vectors.deltas:
                    expected[layer, first : first + count] += t.strength * t.vectors.deltas[layer]
        first += count
    batch = steering_batch(held_rows, total, bank)
    for layer in range(4):
        assert torch.allclose(dense(batch.layers.get(layer), total), expected[layer], atol=1e-5)


def dense(found: object, total: int) -> torch.Tensor:
    from steering.types import LayerSteering

    out = torch.zeros(total, SIZE)
    if isinstance(found, LayerSteering):
        delta = found.delta if found.owner is None else found.delta[found.owner]
        out[slice(None) if found.tokens is None else found.tokens] = delta
    return out
