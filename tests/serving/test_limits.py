"""Rate limit in the memory of one process; with a real Redis in tests/integration."""

import asyncio
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_project.errors import PipelineError
from mlops_project.serving.limits import LimiterDown, Quota, RateLimiter


def hits(limiter: RateLimiter, *costs: int, key: str = "a") -> list[Quota]:
    async def main():
        return [await limiter.hit(key, cost) for cost in costs]

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def frozen(monkeypatch):
    """Half a minute into a minute, and a day ahead, so that the library's clean-up finds nothing to forget."""
    now = [(time.time() // 60 + 1440) * 60 + 30]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def test_what_is_over_the_limit_is_refused_and_says_when_to_come_back():
    first, second, third = hits(RateLimiter("2/minute"), 1, 1, 1)
    assert first == Quota(2, 1, 30, True)
    assert second == Quota(2, 0, 30, True)
    assert third == Quota(2, 0, 30, False)
    status, headers, body = third.answer()
    assert status == json.loads(body)["status"] == 429
    assert dict(headers)[b"retry-after"] == dict(headers)[b"ratelimit-reset"] == b"30"
    assert (dict(headers)[b"ratelimit-limit"], dict(headers)[b"ratelimit-remaining"]) == (b"2", b"0")


def test_a_new_window_begins_with_the_clock(frozen):
    limiter = RateLimiter("1/minute")
    assert [quota.allowed for quota in hits(limiter, 1, 1)] == [True, False]
    frozen[0] += 29.9
    assert hits(limiter, 1)[0] == Quota(1, 0, 1, False)
    frozen[0] += 0.1
    assert hits(limiter, 1)[0] == Quota(1, 0, 60, True)


def test_keys_do_not_share_a_limit():
    limiter = RateLimiter("1/minute")
    assert hits(limiter, 1, key="a")[0].allowed
    assert hits(limiter, 1, key="b")[0].allowed


def test_a_large_request_that_is_refused_takes_nothing_from_small_ones():
    quotas = hits(RateLimiter("10/minute"), 8, 1000, 2, 1)
    assert [(quota.allowed, quota.remaining) for quota in quotas] == [(True, 2), (False, 2), (True, 0), (False, 0)]


@given(st.lists(st.integers(min_value=1, max_value=12), max_size=30))
def test_no_order_of_costs_gets_more_than_the_limit(costs):
    quotas = hits(RateLimiter("10/hour"), *costs)
    assert sum(cost for cost, quota in zip(costs, quotas, strict=True) if quota.allowed) <= 10
    assert all(0 <= quota.remaining <= 10 for quota in quotas)


@pytest.mark.parametrize("rule", ["", "many", "10", "0x10/minute", "-1/minute", "10/fortnight"])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(PipelineError, match="expected something like 600/minute"):
        RateLimiter(rule)


def test_a_url_that_is_none_is_refused_without_being_shown():
    for url in ("http://u:secret@h", "redis:secret@h", "", "redis://u:secret@h:port/0"):
        with pytest.raises(PipelineError, match="the URL of the rate limit") as refused:
            RateLimiter("1/minute", url)
        assert "secret" not in str(refused.value)


def test_the_answer_while_the_limit_cannot_be_checked_is_a_problem():
    status, headers, body = LimiterDown().answer()
    assert status == json.loads(body)["status"] == 503
    assert dict(headers)[b"retry-after"] == b"2"
