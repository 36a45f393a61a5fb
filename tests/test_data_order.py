"""Order: every example once an epoch, whatever the mode, and nothing but (seed, epoch) decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_replication.data.order import Mode, batch_indices, epoch_order
from bn_replication.errors import UserError
from bn_replication.streams import generator, stream_seed

MODES: list[Mode] = ["full", "within_shard", "fixed"]
sizes, seeds, epochs, modes = (
    st.integers(1, 200),
    st.integers(0, 2**32),
    st.integers(0, 50),
    st.sampled_from(MODES),
)


@given(n=sizes, seed=seeds, epoch=epochs, mode=modes, data=st.data())
def test_an_epoch_is_a_permutation_and_depends_on_nothing_else(n, seed, epoch, mode, data):
    shards = data.draw(st.integers(1, n))
    order = epoch_order(n, seed, epoch, mode, shards)
    assert order.sort().values.tolist() == list(range(n))
    torch.rand(3)  # the global generator plays no part
    assert epoch_order(n, seed, epoch, mode, shards).equal(order)


@given(n=sizes, seed=seeds, epoch=st.integers(1, 50), data=st.data())
def test_shards_keep_their_members(n, seed, epoch, data):
    shards = data.draw(st.integers(1, n))
    first, later = (epoch_order(n, seed, e, "within_shard", shards).tensor_split(shards) for e in (0, epoch))
    assert [set(part.tolist()) for part in first] == [set(part.tolist()) for part in later]


def test_what_each_mode_keeps():
    orders = {mode: [epoch_order(1000, 7, epoch, mode, 10) for epoch in range(3)] for mode in MODES}
    assert orders["fixed"][0].equal(orders["fixed"][1])
    for mode in ("full", "within_shard"):
        assert not orders[mode][0].equal(orders[mode][1])
        assert not orders[mode][1].equal(orders[mode][2])
    members = [set(part.tolist()) for part in orders["full"][0].tensor_split(10)]
    assert members != [set(part.tolist()) for part in orders["full"][1].tensor_split(10)]
    assert not epoch_order(1000, 8, 0, "fixed").equal(orders["fixed"][0])


def test_shards_lie_between_a_fixed_batch_and_a_full_shuffle():
    together = {}  # how often two batch-mates of the first epoch meet again in the second
    for shards in (1, 10, 100):
        epoch = [batch_indices(step, 10, 1000, 3, "within_shard", shards).tolist() for step in range(200)]
        batches = [[set(indices) for indices in half] for half in (epoch[:100], epoch[100:])]
        home = {example: batch for batch in batches[1] for example in batch}
        pairs = [(a, b) for batch in batches[0] for a in batch for b in batch if a < b]
        together[shards] = sum(b in home[a] for a, b in pairs) / len(pairs)
    assert together[100] == 1  # a shard a batch: the same examples always meet
    assert together[1] == pytest.approx(9 / 999, abs=0.01)
    assert together[10] == pytest.approx(9 / 99, abs=0.02)


@settings(max_examples=50)
@given(n=sizes, batch=st.integers(1, 300), seed=seeds, mode=modes)
def test_batches_are_full_and_run_on_across_epochs(n, batch, seed, mode):
    steps = -(-3 * n // batch)
    batches = [batch_indices(step, batch, n, seed, mode) for step in range(steps)]
    assert all(len(indices) == batch and indices.dtype == torch.int64 for indices in batches)
    for epoch, seen in enumerate(torch.cat(batches)[: 3 * n].view(3, n)):
        assert seen.equal(epoch_order(n, seed, epoch, mode))


def test_fixed_batches_return_when_the_batch_divides():
    for n, same in ((96, True), (100, False)):
        batches = [batch_indices(step, 32, n, 5, "fixed").tolist() for step in range(6)]
        assert (batches[:3] == batches[3:]) is same


def test_what_is_handed_out_can_be_changed_without_harm():
    first = batch_indices(0, 32, 100, 1)
    kept = first.clone()
    first.zero_()
    assert batch_indices(0, 32, 100, 1).equal(kept)


def test_user_mistakes():
    with pytest.raises(UserError, match="did you mean 'within_shard'"):
        epoch_order(10, 0, 0, "within_shards")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="found 11 shards, expected 1 to 10"):
        epoch_order(10, 0, 0, "within_shard", 11)
    with pytest.raises(UserError, match="found batch size 0"):
        batch_indices(0, 0, 10, 0)


keys = st.tuples(st.integers(-(2**40), 2**40), st.text(max_size=8), st.integers(0, 2**40))


@settings(max_examples=40)
@given(a=keys, b=keys)
def test_streams_differ(a, b):
    assert 0 <= stream_seed(*a) < 2**63
    assert (stream_seed(*a) == stream_seed(*b)) is (a == b)


def test_streams_are_the_same_for_good():
    assert stream_seed(0, "order") == stream_seed(0, "order", 0) == 1831614450559561184
    draws = [torch.rand(4, generator=generator(*key)) for key in ((0, "order", 0), (0, "order", 1), (0, "init", 0))]
    assert torch.rand(4, generator=generator(0, "order", 0)).equal(draws[0])
    assert not draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])
