"""Laws of sampling: what each parameter promises about the token that is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cpu_engine.sampling import Sampler, SamplingError, SamplingParams
from cpu_engine.tensors import FloatArray

LAWS = settings(max_examples=200, deadline=None)
VOCABULARY = 50
LOGITS = arrays.arrays(np.float32, VOCABULARY, elements=st.floats(-30, 30, width=32))
PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0.0, 5.0),
    top_p=st.floats(0.0, 1.0),
    top_k=st.integers(0, 60),
    min_p=st.floats(0.0, 1.0),
    repetition_penalty=st.floats(0.1, 3.0),
    frequency_penalty=st.floats(-2.0, 2.0),
    presence_penalty=st.floats(-2.0, 2.0),
    seed=st.integers(0, 2**59),
    top_logprobs=st.none() | st.integers(0, 20),
)


def probabilities(logits: FloatArray, temperature: float = 1.0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    scores = logits.astype(np.float64) / temperature
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def draws(params: SamplingParams, logits: FloatArray, count: int = 40) -> set[int]:
    """Return the distinct tokens of independent first choices."""
    return {Sampler(params_with(params, seed), []).choose(logits).token for seed in range(count)}


def params_with(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(temperature=params.temperature, top_p=params.top_p, top_k=params.top_k, min_p=params.min_p, seed=seed)


@given(LOGITS, PARAMS)
@LAWS
def test_any_parameters_choose_a_token_of_the_vocabulary_and_leave_the_logits_alone(logits: FloatArray, params: SamplingParams) -> None:
    """Rule: choose() returns a token for every parameter in range, and does not write to its input."""
    before = logits.copy()
    sampler = Sampler(params, [1, 2, 3])
    for _ in range(3):
        choice = sampler.choose(logits)
        assert 0 <= choice.token < VOCABULARY
        assert len(choice.top) == (params.top_logprobs or 0)
    np.testing.assert_array_equal(logits, before)


@given(LOGITS, st.sampled_from([{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-9}]))
@LAWS
def test_greedy_takes_the_first_of_the_largest_logits(logits: FloatArray, how: dict[str, float]) -> None:
    """Rule: temperature 0, top_k 1 and top_p 0 are greedy."""
    assert Sampler(SamplingParams(**how), []).choose(logits).token == int(logits.argmax())  # type: ignore[arg-type]


@given(LOGITS, PARAMS)
@LAWS
def test_the_same_seed_gives_the_same_tokens(logits: FloatArray, params: SamplingParams) -> None:
    """Rule: a request with a seed is repeatable."""
    one, two = Sampler(params, [4]), Sampler(params, [4])
    assert [one.choose(logits) for _ in range(5)] == [two.choose(logits) for _ in range(5)]


@given(LOGITS, st.integers(1, VOCABULARY))
@LAWS
def test_top_k_keeps_to_the_k_most_probable(logits: FloatArray, k: int) -> None:
    """Rule: no token outside the k most probable is chosen."""
    bound = np.sort(logits)[-k]
    assert all(logits[token] >= bound - 1e-4 for token in draws(SamplingParams(top_k=k), logits))


@given(LOGITS, st.floats(0.01, 1.0))
@LAWS
def test_top_p_keeps_to_the_smallest_set_that_reaches_p(logits: FloatArray, p: float) -> None:
    """Rule: a token is chosen only if the more probable ones do not reach p without it."""
    chances = probabilities(logits)
    for token in draws(SamplingParams(top_p=p), logits):
        # Equal in float32 counts as equal.
        assert chances[chances > chances[token] * (1 + 1e-5)].sum() < p + 1e-5


@given(LOGITS, st.floats(0.01, 1.0))
@LAWS
def test_min_p_drops_what_is_far_less_probable_than_the_best(logits: FloatArray, p: float) -> None:
    """Rule: a token is chosen only if its chance is at least min_p times the largest."""
    chances = probabilities(logits)
    assert all(chances[token] >= p * chances.max() * (1 - 1e-5) for token in draws(SamplingParams(min_p=p), logits))


def test_top_p_looks_beyond_its_first_candidates_where_the_mass_is_spread() -> None:
    flat = np.zeros(5000, np.float32)
    tokens = draws(SamplingParams(top_p=0.9), flat, count=60)
    assert max(tokens) > 3000
    assert max(tokens) < 4501


def test_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingParams(seed=1), [])
    counts = np.bincount([sampler.choose(logits).token for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)


@given(LOGITS, st.sets(st.integers(0, VOCABULARY - 1), min_size=1, max_size=VOCABULARY - 1), PARAMS)
@LAWS
def test_banned_tokens_are_never_chosen(logits: FloatArray, banned: set[int], params: SamplingParams) -> None:
    """Rule: neither bad_words nor tokens forbidden for the moment appear."""
    half = sorted(banned)
    params = SamplingParams(temperature=params.temperature, seed=params.seed, banned=[[token] for token in half[::2]])
    sampler = Sampler(params, [])
    assert all(sampler.choose(logits, half[1::2]).token not in banned for _ in range(5))


def test_a_banned_sequence_is_broken_at_its_last_token() -> None:
    sampler = Sampler(SamplingParams(temperature=0.0, banned=[[3, 3, 3]]), [])
    logits = np.array([0, 1, 2, 9], np.float32)
    assert [sampler.choose(logits).token for _ in range(6)] == [3, 3, 2, 3, 3, 2]


def test_banning_every_token_is_an_error() -> None:
    with pytest.raises(SamplingError, match="every token is banned"):
        Sampler(SamplingParams(), []).choose(np.zeros(3, np.float32), [0, 1, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(SamplingError, match="no number"):
        Sampler(SamplingParams(), []).choose(np.array([0.0, bad], np.float32))


@pytest.mark.parametrize(("penalty", "logits"), [(1e-6, [3e38, 0.0]), (1e30, [-3e38, -3e38])])
def test_a_penalty_that_leaves_no_finite_score_at_the_top_is_an_error(penalty: float, logits: list[float]) -> None:
    with np.errstate(over="ignore"), pytest.raises(SamplingError, match="a score that is no number"):
        Sampler(SamplingParams(repetition_penalty=penalty), [0, 1]).choose(np.array(logits, np.float32))


def test_repetition_penalty_weighs_on_prompt_and_answer() -> None:
    sampler = Sampler(SamplingParams(temperature=0.0, repetition_penalty=2.0), [0])
    logits = np.array([3.0, 2.0, 1.9, -5.0], np.float32)
    assert [sampler.choose(logits).token for _ in range(3)] == [1, 2, 0]
    negative = np.array([-1.0, -1.5], np.float32)
    assert Sampler(SamplingParams(temperature=0.0, repetition_penalty=2.0), [0]).choose(negative).token == 1


def test_frequency_and_presence_penalty_weigh_on_the_answer_only() -> None:
    logits = np.array([3.0, 2.0, 1.5], np.float32)
    presence = Sampler(SamplingParams(temperature=0.0, presence_penalty=1.2), [0, 0])
    assert [presence.choose(logits).token for _ in range(4)] == [0, 1, 0, 0]
    frequency = Sampler(SamplingParams(temperature=0.0, frequency_penalty=0.6), [0, 0])
    assert [frequency.choose(logits).token for _ in range(5)] == [0, 0, 1, 0, 2]


@given(LOGITS, st.integers(0, 20))
@LAWS
def test_logprobs_are_those_of_the_raw_logits(logits: FloatArray, count: int) -> None:
    """Rule: log-probabilities are log_softmax of the logits, whatever penalties and temperature did."""
    params = SamplingParams(temperature=3.0, presence_penalty=2.0, repetition_penalty=2.0, top_logprobs=count, seed=1)
    sampler = Sampler(params, [1])
    sampler.choose(logits)
    choice = sampler.choose(logits)
    expected = np.log(probabilities(logits))
    assert choice.logprob == pytest.approx(expected[choice.token], abs=1e-4)
    assert [value for _, value in choice.top] == pytest.approx(sorted(expected, reverse=True)[:count], abs=1e-4)
    assert len({token for token, _ in choice.top}) == count
