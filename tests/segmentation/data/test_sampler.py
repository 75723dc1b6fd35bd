"""Batches of scans x partitions x slices: composition, coverage, determinism and resumption."""

import pytest
import torch

from spcl_fast.segmentation.data.meta_labels import position_partition
from spcl_fast.segmentation.data.sampler import GroupSampler


def stacks(depths):
    counts = torch.tensor(depths)
    scan = torch.arange(len(depths)).repeat_interleave(counts)
    index = torch.cat([torch.arange(n) for n in depths])
    return scan, index, counts.repeat_interleave(counts)


def make(columns, seed=0, scans=10, partitions=3, slices=1):
    return GroupSampler(
        *columns,
        num_scans=scans,
        num_partitions=partitions,
        slices_per_partition=slices,
        generator=torch.Generator().manual_seed(seed),
    )


# the paper's ACDC batch; two slices a partition; all scans at once; one of everything
@pytest.mark.parametrize(
    ("scans", "partitions", "slices"), [(10, 3, 1), (5, 3, 2), (12, 3, 1), (1, 1, 1)]
)
def test_composition(scans, partitions, slices):
    scan, index, count = columns = stacks([6, 7, 8, 9, 10, 11, 12, 6, 17, 21, 9, 8])
    sampler = make(columns, scans=scans, partitions=partitions, slices=slices)
    part = position_partition(index, count, partitions)
    for _ in range(50):
        batch = sampler()
        assert batch.dtype == torch.int64
        assert len(batch) == scans * partitions * slices
        assert len(batch.unique()) == len(batch)
        ids, counts = scan[batch].unique(return_counts=True)
        assert len(ids) == scans
        assert (counts == partitions * slices).all()
        cells, counts = (scan[batch] * partitions + part[batch]).unique(return_counts=True)
        assert len(cells) == scans * partitions
        assert (counts == slices).all()


def test_every_slice_is_drawn_evenly():
    columns = stacks([6] * 8)
    sampler = make(columns, scans=4)
    hits = torch.zeros(48)
    for _ in range(2000):
        hits[sampler()] += 1
    # each slice: probability 4/8 x 1/2 a batch, 500 expected, standard deviation 19
    assert 400 < hits.min() < hits.max() < 600


def test_small_and_empty_partitions_are_skipped():
    # a stack of two slices has parts 0 and 1 of three; a part with one slice gives that one
    columns = stacks([2, 2, 9])
    sampler = make(columns, scans=3, slices=2)
    assert all(len(sampler()) == 2 + 2 + 6 for _ in range(20))
    assert len(make(columns, scans=3, slices=99)()) == 13


def test_scan_numbers_may_have_gaps():
    scan, index, count = stacks([6, 6, 6])
    batch = make((scan * 7 + 2, index, count), scans=3)()
    assert (scan[batch].bincount() == 3).all()


def test_deterministic_and_resumable():
    columns = stacks([9] * 20)
    first, second = make(columns, seed=5), make(columns, seed=5)
    assert all(torch.equal(first(), second()) for _ in range(5))
    assert not torch.equal(make(columns, seed=6)(), make(columns, seed=5)())
    generator = torch.Generator().manual_seed(1)
    sampler = GroupSampler(
        *columns, num_scans=10, num_partitions=3, slices_per_partition=1, generator=generator
    )
    for _ in range(7):
        sampler()
    state = generator.get_state()
    expected = [sampler() for _ in range(5)]
    resumed = make(columns, seed=999)
    resumed_generator = torch.Generator()
    resumed_generator.set_state(state)
    resumed = GroupSampler(
        *columns,
        num_scans=10,
        num_partitions=3,
        slices_per_partition=1,
        generator=resumed_generator,
    )
    assert all(torch.equal(resumed(), batch) for batch in expected)


# each bound that the constructor states
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scans": 4}, r"num_scans must be in 1\.\.3 \(the scans there are\), got 4"),
        ({"scans": 0}, r"num_scans must be in 1\.\.3"),
        ({"scans": 3, "slices": 0}, "slices_per_partition must be at least 1"),
        ({"scans": 3, "partitions": 0}, "num_partitions must be at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(stacks([6, 6, 6]), **options)
