"""Meta-labels: position partitions against their definition, names, and the unknown label."""

from types import SimpleNamespace

import pytest
import torch

from spcl_fast.segmentation.data.meta_labels import (
    MOST_NUMBERS,
    binned,
    meta_label,
    numbers_of,
    position_partition,
)


def stack(n):
    return torch.arange(n), torch.full((n,), n)


# more and fewer slices than partitions, divisible and not; ACDC has 6 to 21, prostate up to 54
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 10, 21, 54])
@pytest.mark.parametrize("num_partitions", [1, 2, 3, 8])
def test_position_partition(n, num_partitions):
    parts = position_partition(*stack(n), num_partitions)
    assert parts.dtype == torch.int64
    assert parts.tolist() == [num_partitions * i // n for i in range(n)]
    sizes = torch.bincount(parts, minlength=num_partitions)
    assert int(sizes.max() - sizes.min()) <= 1
    assert parts[0] == 0
    assert (parts.diff() >= 0).all()


# the middle of any stack has the same label, and the last slice always the last label when n >= K
def test_partitions_line_up_across_volumes():
    for n in (8, 15, 16, 20, 23, 24, 31):
        parts = position_partition(*stack(n), 8)
        assert parts[-1] == 7
        assert len(parts.unique()) == 8


@pytest.fixture
def slices():
    index, count = stack(6)
    meta = {"patient": torch.tensor([0, 0, 0, 1, 1, 1]), "vendor": torch.tensor([-1] * 3 + [0] * 3)}

    class Fake(SimpleNamespace):
        def __len__(self):
            return 6

    names = {"patient": ["a", "b"], "vendor": ["A"]}
    return Fake(
        slice_index=index, num_slices=count, scan=torch.zeros(6), meta=meta, categories=names
    )


def with_ages(slices, ages):
    """Add a column of numbers as text; None is unknown."""
    names = sorted({age for age in ages if age})
    slices.categories["age"] = names
    slices.meta["age"] = torch.tensor([names.index(age) if age else -1 for age in ages])
    return slices


def test_names(slices):
    assert meta_label(slices, "position").tolist() == [0, 0, 1, 1, 2, 2]
    assert meta_label(slices, "position", num_partitions=2).tolist() == [0, 0, 0, 1, 1, 1]
    assert meta_label(slices, "self").tolist() == [0, 1, 2, 3, 4, 5]
    assert meta_label(slices, "patient").tolist() == [0, 0, 0, 1, 1, 1]
    assert meta_label(slices, "vendor").tolist() == [-1, -1, -1, 0, 0, 0]


def test_unknown_name_lists_what_exists(slices):
    with pytest.raises(ValueError, match="one of position, self, patient, vendor, got 'scanner'"):
        meta_label(slices, "scanner")


def test_num_partitions_must_be_positive(slices):
    with pytest.raises(ValueError, match="num_partitions must be at least 1, got 0"):
        meta_label(slices, "position", num_partitions=0)


def test_numbers_in_bins_and_windows(slices):
    with_ages(slices, ["40", "9", "-2.5", None, "70", "100"])
    assert numbers_of(slices, "age").tolist() == [42.5, 11.5, 0, -1, 72.5, 102.5]
    assert binned(slices, "age", "40,100").tolist() == [1, 0, 0, -1, 1, 2]
    assert binned(slices, "age", "40,").tolist() == [1, 0, 0, -1, 1, 1]
    assert binned(slices, "age", "2").tolist() == [1, 0, 0, -1, 1, 1]  # 2 and 3 of 5
    assert binned(slices, "age", "each").tolist() == slices.meta["age"].tolist()
    for wrong in ("1", "a", "4.5", "40,x"):
        with pytest.raises(ValueError, match=r"bins of age must be .*, got"):
            binned(slices, "age", wrong)
    with pytest.raises(ValueError, match=r"vendor must hold numbers for bins or a window, got A"):
        binned(slices, "vendor", "2")


def test_a_column_of_many_numbers_is_no_set_of_categories(slices):
    slices.meta["age"] = torch.arange(6)
    for count, most in ((MOST_NUMBERS, True), (MOST_NUMBERS + 1, False)):
        slices.categories["age"] = [str(k) for k in range(count)]
        if most:
            assert meta_label(slices, "age").tolist() == [0, 1, 2, 3, 4, 5]
        else:
            with pytest.raises(
                ValueError, match=rf"age holds {count} different numbers: give bins"
            ):
                meta_label(slices, "age")
    slices.categories["age"][0] = "3T"  # a name
    assert meta_label(slices, "age").tolist() == [0, 1, 2, 3, 4, 5]
