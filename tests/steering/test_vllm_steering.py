"""What steers inside vLLM's processes, without vLLM: plans on their way, cache keys, two ways to steer."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from steering.kernel import renormalised_add
from steering.types import Positions, SteeringPlan, SteeringTerm, SteeringVectors, Tokens
from steering.vllm.applying import NotSteered
from steering.vllm.plans import generated_key, loadable, packed_request, packed_vectors, prompt_salt
from steering.vllm.plugin import keyed_apart
from steering.vllm.station import Scheduled, Shape, Station

SIZE, LAYERS = 8, 3
CPU = torch.device("cpu")


def vectors(name: str, *layers: int) -> SteeringVectors:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return SteeringVectors(name, 1, name, {layer: torch.randn(SIZE, generator=generator) for layer in layers})


def term(
    of: SteeringVectors,
    strength: float = 1.0,
    positions: Positions = "all",
    tokens: Tokens = "all",
    layers: tuple[int, ...] | None = None,
) -> SteeringTerm:
    return SteeringTerm(of, strength, layers or of.layers, positions, tokens)


CALM, LOUD = vectors("calm", 0, 2), vectors("loud", 1, 2)


@pytest.fixture(params=[False, True], ids=["by index", "by table"])
def station(request: pytest.FixtureRequest) -> Station:
    made = Station(Shape(tuple(range(LAYERS)), SIZE, 4, 64, request.param), CPU)
    for each in (CALM, LOUD):
        made.load(each.digest, packed_vectors(each))
    return made


def admit(station: Station, name: str, prompt_length: int, *terms: SteeringTerm) -> None:
    station.begin((), {name: packed_request(SteeringPlan(terms), prompt_length)})


def run_blocks(station: Station, hidden: Tensor, residual: Tensor, skip: int | None = None) -> list[Tensor]:
    """Return the sum after each block, of blocks that pass on what they get."""
    sums = []
    for layer in range(LAYERS):
        if layer != skip:
            station.steer(layer, hidden, residual)
        sums.append(hidden + residual)
    return sums


def test_a_step_moves_the_tokens_of_each_request_by_its_own_terms(station: Station) -> None:
    admit(station, "a", 3, term(CALM, 0.5))
    admit(station, "b", 2, term(CALM, -1.0, "generated"), term(LOUD, 0.25))
    station.prepare([Scheduled("x", 2, 0), Scheduled("a", 3, 0), Scheduled("b", 2, 1)])
    hidden, residual = torch.randn(9, SIZE), torch.randn(9, SIZE)  # two tokens are padding
    before = (hidden + residual).clone()
    sums = run_blocks(station, hidden, residual)
    station.finish()
    station.verify()
    untouched = [0, 1, 7, 8]
    assert torch.equal(sums[-1][untouched], before[untouched])
    after = renormalised_add(before[2:5], 0.5 * CALM.deltas[0])
    assert torch.allclose(sums[0][2:5], after, atol=1e-6)
    assert torch.equal(sums[0][5], before[5]), "the last prompt token has no generated steering"
    generated = renormalised_add(before[6:7], -CALM.deltas[0])
    generated = renormalised_add(generated, 0.25 * LOUD.deltas[1])
    both = renormalised_add(generated, -CALM.deltas[2] + 0.25 * LOUD.deltas[2])
    assert torch.allclose(sums[2][6:7], both, atol=1e-6)


def test_a_block_that_puts_off_no_sum_is_steered_too(station: Station) -> None:
    admit(station, "a", 2, term(CALM))
    station.prepare([Scheduled("a", 2, 0)])
    hidden = torch.randn(2, SIZE)
    before = hidden.clone()
    station.steer(0, hidden, None)
    assert torch.allclose(hidden, renormalised_add(before, CALM.deltas[0]), atol=1e-6)


def test_bfloat16_rows_that_nothing_steers_come_back_bit_for_bit(station: Station) -> None:
    part = loadable(term(CALM, layers=(2,)))
    station.load(part.digest, packed_vectors(part))
    admit(station, "a", 1, term(CALM, layers=(2,)))
    hidden, residual = (torch.randn(2, SIZE).bfloat16() for _ in range(2))
    kept = hidden.clone(), residual.clone()
    station.prepare([Scheduled("x", 1, 0), Scheduled("a", 1, 0)])
    for layer in (0, 1):
        station.steer(layer, hidden, residual)
    assert torch.equal(hidden, kept[0])
    assert torch.equal(residual, kept[1])
    station.steer(2, hidden, residual)
    assert torch.equal(residual[0], kept[1][0])
    assert not torch.equal(residual[1], kept[1][1])


def test_vectors_that_are_not_loaded_fail_the_step_that_names_them(station: Station) -> None:
    with pytest.raises(KeyError, match="unknown"):
        admit(station, "a", 1, term(vectors("unknown", 0)))


def test_a_block_that_was_to_steer_and_did_not_is_found_out(station: Station) -> None:
    admit(station, "a", 1, term(CALM))
    station.prepare([Scheduled("a", 1, 0)])

    def step() -> None:
        run_blocks(station, torch.randn(1, SIZE), torch.randn(1, SIZE), skip=2)
        station.finish()
        station.verify()

    with pytest.raises(NotSteered, match=r"\[2\]"):
        step()


def test_a_step_without_steered_requests_steers_nothing_of_the_last_one(station: Station) -> None:
    admit(station, "a", 1, term(CALM))
    for scheduled in ([Scheduled("a", 1, 0)], [Scheduled("x", 1, 0)]):
        station.prepare(scheduled)
        hidden, residual = torch.randn(1, SIZE), torch.randn(1, SIZE)
        before = hidden + residual
        moved = not torch.equal(run_blocks(station, hidden, residual)[-1], before)
        station.finish()
        assert moved == (scheduled[0].request == "a")
    station.verify()


def test_evicted_vectors_make_room_once_the_last_step_says_so(station: Station) -> None:
    for number in range(40):
        each = vectors(f"profile {number}", 0)
        station.load(each.digest, packed_vectors(each))
        admit(station, f"r{number}", 1, term(each))
        station.evict(each.digest)
        station.begin([f"r{number}"], {})
    admit(station, "last", 1, term(CALM))
    station.prepare([Scheduled("last", 1, 0)])
    before = torch.randn(1, SIZE)
    after = run_blocks(station, before.clone(), torch.zeros(1, SIZE))[0]
    assert torch.allclose(after, renormalised_add(before, CALM.deltas[0]), atol=1e-6)


def test_a_rank_holds_the_layers_that_it_owns() -> None:
    station = Station(Shape((2,), SIZE, 2, 8, False), CPU)
    station.load(CALM.digest, packed_vectors(CALM))
    admit(station, "a", 1, term(CALM))
    station.prepare([Scheduled("a", 1, 0)])
    hidden, residual = torch.randn(1, SIZE), torch.randn(1, SIZE)
    before = hidden + residual
    station.steer(2, hidden, residual)
    station.finish()
    assert torch.allclose(hidden + residual, renormalised_add(before, CALM.deltas[2]), atol=1e-6)


def test_a_subset_of_layers_is_vectors_of_its_own() -> None:
    whole, part = loadable(term(CALM)), loadable(term(CALM, layers=(2,)))
    assert whole.digest == CALM.digest
    assert part.digest != whole.digest
    assert part.layers == (2,)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([term(CALM)], [term(CALM)], True),
        ([term(CALM)], [term(CALM, positions="prompt")], True),
        ([term(CALM), term(LOUD)], [term(LOUD), term(CALM)], True),
        ([term(CALM)], [], False),
        ([term(CALM)], [term(CALM, 0.5)], False),
        ([term(CALM)], [term(LOUD)], False),
        ([term(CALM)], [term(CALM, layers=(0,))], False),
        ([term(CALM)], [term(CALM, tokens="text")], False),
        ([], [term(CALM, 0.0)], True),
        ([], [term(CALM, positions="generated")], True),
    ],
)
def test_prompts_share_a_cache_if_they_are_moved_alike(
    one: list[SteeringTerm], other: list[SteeringTerm], same: bool
) -> None:
    assert (prompt_salt(SteeringPlan(tuple(one))) == prompt_salt(SteeringPlan(tuple(other)))) is same


@pytest.mark.parametrize(
    ("terms", "apart"),
    [
        ([], False),
        ([term(CALM)], False),
        ([term(CALM, tokens="text")], False),
        ([term(CALM, tokens="image")], False),
        ([term(CALM, 0.0, "generated")], False),
        ([term(CALM, positions="prompt", tokens="image")], False),
        ([term(CALM, positions="prompt")], True),
        ([term(CALM, positions="generated")], True),
        ([term(CALM), term(LOUD, positions="generated")], True),
    ],
)
def test_generated_tokens_are_keyed_apart_where_a_prompt_would_be_moved_otherwise(
    terms: list[SteeringTerm], apart: bool
) -> None:
    assert (generated_key(SteeringPlan(tuple(terms))) is not None) is apart


def test_blocks_with_generated_tokens_of_such_requests_get_a_key_more() -> None:
    def stock(request: object, start: int, end: int, image: int) -> tuple[tuple[str, ...] | None, int]:
        return None, image

    keys: Callable[..., tuple[object, int]] = keyed_apart(stock)

    def asked(*terms: SteeringTerm) -> SimpleNamespace:
        extra = packed_request(SteeringPlan(terms), 20) if terms else None
        return SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra), num_prompt_tokens=20)

    lopsided, even, none = asked(term(CALM, positions="prompt")), asked(term(CALM)), asked()
    assert keys(lopsided, 0, 16, 3) == (None, 3)
    assert keys(lopsided, 16, 32, 0)[0] is not None, "the block in which the prompt ends"
    assert keys(even, 16, 32, 0) == keys(none, 16, 32, 0) == (None, 0)
