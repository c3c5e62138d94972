"""The short forms of what `benchmarks/fuzz_serving.py` and `benchmarks/soak_serving.py` do at length."""

import pytest

from fuzz_serving import fuzz
from running import train
from soak_serving import faults, soak

pytestmark = pytest.mark.integration


def test_bodies_that_are_anything_make_no_fault(tmp_path):
    train(tmp_path)
    statuses, _, logged = fuzz(tmp_path, 5000)
    assert {200, 400, 422} <= set(statuses)
    assert sum(statuses.values()) >= 5000
    assert logged >= statuses[200]


def test_load_with_exchanges_and_a_kill_mixes_and_loses_nothing(tmp_path):
    found = soak(tmp_path, requests=5000, swaps=3, kills=1, connections=16)
    assert faults(found, 16) == []
    assert {200, 400, 401, 413, 415, 422} <= set(found.answers)
    assert len(found.versions) == 3
