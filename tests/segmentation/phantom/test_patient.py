"""Patients of the phantom: same seed, same bits; hearts that beat as their group does."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.volume import read_scan
from spcl_fast.segmentation.phantom import PhantomConfig, make_patient
from spcl_fast.segmentation.phantom.anatomy import GROUPS, sample_heart
from spcl_fast.segmentation.phantom.surfaces import cross_sections

RV, MYO, LV = 1, 2, 3
PHASES = ("ED", "ES")
CONFIG = PhantomConfig(num_patients=30)
SMALL = PhantomConfig(num_patients=3, size=32, pixel_mm=6.0)


@pytest.fixture(scope="module")
def patients():
    return [make_patient(CONFIG, index) for index in range(CONFIG.num_patients)]


def volume_ml(patient, phase, label):
    return (patient.masks[phase] == label).sum() * np.prod(patient.spacing_mm) / 1000


def ejection_fraction(patient, label):
    return 1 - volume_ml(patient, "ES", label) / volume_ml(patient, "ED", label)


def same(a, b):
    return all(
        np.array_equal(a.images[p], b.images[p]) and np.array_equal(a.masks[p], b.masks[p])
        for p in PHASES
    )


def test_a_patient_depends_on_seed_and_index_alone(patients):
    alone = make_patient(dataclasses.replace(CONFIG, num_patients=100), 7)
    assert same(alone, patients[7])
    assert (alone.frames, alone.spacing_mm) == (patients[7].frames, patients[7].spacing_mm)


@pytest.mark.slow
def test_a_patient_is_the_same_in_another_process(patients):
    code = (
        "import hashlib; from spcl_fast.segmentation.phantom import PhantomConfig, make_patient;"
        "p = make_patient(PhantomConfig(num_patients=30), 3);"
        "print(hashlib.sha256(p.images['ES'].tobytes() + p.masks['ED'].tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    data = patients[3].images["ES"].tobytes() + patients[3].masks["ED"].tobytes()
    assert run.stdout.strip() == hashlib.sha256(data).hexdigest()


def test_index_and_seed_change_the_anatomy(patients):
    other_seed = make_patient(dataclasses.replace(CONFIG, seed=1), 0)
    volumes = [volume_ml(p, "ED", LV) for p in [*patients, other_seed]]
    assert len(set(volumes)) == len(volumes)
    assert not same(other_seed, patients[0])


def test_arrays_have_the_promised_form(patients):
    for patient in patients:
        dz, dy, dx = patient.spacing_mm
        assert 7 < dz < 12
        assert dy == dx
        assert abs(dx / CONFIG.pixel_mm - 1) <= CONFIG.pixel_spread + 1e-3
        for phase in PHASES:
            image, mask = patient.images[phase], patient.masks[phase]
            assert image.dtype == np.float32
            assert mask.dtype == np.uint8
            assert 8 <= len(image) <= 12
            assert image.shape == mask.shape == (len(image), 96, 96)
            assert np.array_equal(image, np.rint(image))
            assert 0 <= image.min() < image.max() < np.iinfo(np.int16).max
            assert set(np.unique(mask)) == {0, RV, MYO, LV}
            assert set(np.unique(mask[len(mask) // 2])) == {0, RV, MYO, LV}
        assert patient.frames["ED"] == 1 < patient.frames["ES"] <= patient.num_frames


def test_groups_and_vendors_are_balanced_and_crossed(patients):
    pairs = [(p.group, p.vendor) for p in patients]
    assert set(pairs) == {(g, v) for g in GROUPS for v in "ABC"}
    assert all(pairs.count(pair) == 2 for pair in set(pairs))


def test_ejection_fractions_follow_the_group(patients):
    lv = {g: [ejection_fraction(p, LV) for p in patients if p.group == g] for g in GROUPS}
    rv = {g: [ejection_fraction(p, RV) for p in patients if p.group == g] for g in GROUPS}
    for name, group in GROUPS.items():
        assert np.mean(lv[name]) == pytest.approx(group.lv_ef, abs=0.06)
        assert np.mean(rv[name]) == pytest.approx(group.rv_ef, abs=0.09)
    assert max(lv["DCM"]) < min(lv["NOR"])
    assert np.mean(lv["DCM"]) < np.mean(lv["MINF"]) < np.mean(lv["NOR"]) < np.mean(lv["HCM"])
    assert min(min(values) for values in [*lv.values(), *rv.values()]) > 0.05


def test_volumes_follow_the_group(patients):
    mean = {g: {k: [] for k in (RV, MYO, LV)} for g in GROUPS}
    for p in patients:
        for label in (RV, MYO, LV):
            mean[p.group][label].append(volume_ml(p, "ED", label))
    for name, group in GROUPS.items():
        right, wall, left = (np.mean(mean[name][label]) for label in (RV, MYO, LV))
        assert left == pytest.approx(group.lv_ml, rel=0.2)
        assert left / wall == pytest.approx(group.lv_over_myo, rel=0.2)
        assert right / left == pytest.approx(group.rv_over_lv, rel=0.2)
    growth = [volume_ml(p, "ES", MYO) / volume_ml(p, "ED", MYO) for p in patients]
    assert 1.0 < np.mean(growth) < 1.3


# A fine, the default, and the coarsest grid for which a closed ring is promised.
@pytest.mark.parametrize("pixel_mm", [1.2, 2.4, 3.0])
def test_the_lv_lies_inside_the_ring(pixel_mm):
    """Every 4-neighbour of an LV pixel in its slice is LV or myocardium, at the base too."""
    config = PhantomConfig(num_patients=10, size=round(230 / pixel_mm), pixel_mm=pixel_mm)
    for index in range(config.num_patients):
        for mask in make_patient(config, index).masks.values():
            cavity = mask == LV
            for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):
                neighbour = np.roll(mask, step, axis)
                assert set(np.unique(neighbour[cavity])) <= {MYO, LV}


def test_slices_run_from_base_to_apex(patients):
    empty_base, unlabelled = 0, []
    for p in patients:
        for phase in PHASES:
            labelled = (p.masks[phase] > 0).any((1, 2))
            empty_base += not labelled[0]
            unlabelled.append(1 - labelled.mean())
            assert labelled[2:-2].all()
            rv, lv = ((p.masks[phase] == k).any((1, 2)).nonzero()[0] for k in (RV, LV))
            assert rv.max() <= lv.max()  # the RV ends before the apex of the LV
    assert 0.03 < np.mean(unlabelled) < 0.10
    assert empty_base > 0.3 * len(patients) * 2
    assert sum(rv_shorter(p) for p in patients) > 0.8 * len(patients)


def rv_shorter(patient):
    rv, myo = ((patient.masks["ED"] == k).any((1, 2)).sum() for k in (RV, MYO))
    return rv < myo


def test_unlabelled_basal_slices_show_blood(patients):
    for p in patients:
        image, mask = p.images["ES"], p.masks["ES"]
        if (mask[0] == 0).all():
            blood = np.median(image[mask == LV])
            bright = (image[0] > 0.75 * blood)[32:64, 16:64]  # where the heart is
            assert bright.mean() > 0.2


def test_the_heart_is_not_the_only_bright_thing(patients):
    """Thresholding at the signal of blood must fail: aorta, vessels, fat and stomach look alike."""
    for p in patients:
        for phase in PHASES:
            image, mask = p.images[phase], p.masks[phase]
            pool = (mask == LV) | (mask == RV)
            low, high = np.quantile(image[pool], [0.1, 0.9])
            alike = (image >= low) & (image <= high) & (mask == 0)
            assert alike.sum() > 0.3 * pool.sum()
            assert (alike.sum((1, 2)) > 20).all()


def test_blood_is_brighter_than_muscle(patients):
    ratios = []
    for p in patients:
        image, mask = p.images["ED"], p.masks["ED"]
        ratios.append(image[mask == LV].mean() / image[mask == MYO].mean())
    assert 1.9 < np.mean(ratios) < 2.9
    assert min(ratios) > 1.3


def test_vendors_look_different(patients):
    spread = {v: [np.median(p.images["ED"]) for p in patients if p.vendor == v] for v in "ABC"}
    assert max(spread["A"]) < min(spread["C"])  # stored range
    assert all(len(set(values)) > 1 for values in spread.values())


def test_flip_reverses_the_stack(patients):
    flipped = make_patient(dataclasses.replace(CONFIG, flip_probability=1.0), 2)
    for phase in PHASES:
        assert np.array_equal(flipped.masks[phase][::-1], patients[2].masks[phase])
        assert np.array_equal(flipped.images[phase][::-1], patients[2].images[phase])


def test_rv_area_is_the_prescribed_one():
    heart = sample_heart(np.random.default_rng(0), "NOR")
    z = ((np.arange(400) + 0.5) / 400 * heart.length_mm).astype(np.float32)
    section = cross_sections(heart, z, 0.0)
    step = 2 * np.pi / section.rv.shape[1]
    area = 0.5 * (section.rv**2 - section.epi**2).sum(1) * step
    assert area.mean() * heart.length_mm == pytest.approx(heart.rv_mm3, rel=0.01)


# One bad value for each field with a bound.
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_patients", 0),
        ("size", 16),
        ("pixel_mm", 0.0),
        ("pixel_spread", 1.0),
        ("flip_probability", 1.5),
        ("seed", -1),
    ],
)
def test_config_names_the_field_it_refuses(field, value):
    with pytest.raises(ValueError, match=f"{field} must"):
        PhantomConfig(**{field: value})


# Just outside the range on both sides.
@pytest.mark.parametrize("index", [-1, 3])
def test_index_out_of_range(index):
    with pytest.raises(ValueError, match=r"index must be in 0\.\.2"):
        make_patient(SMALL, index)


def test_the_phantom_resembles_acdc(patients, real_data):
    """Means over patients, phantom against real, within the spread between real patients."""
    scans = [s for s in find_data(real_data / "acdc").scans if s.phase == "ED"][::4]
    real = [(v.image, v.mask) for v in map(read_scan, scans)]
    drawn = [(p.images["ED"], p.masks["ED"]) for p in patients]
    for feature in (pool_over_wall, rv_over_lv, blood_over_muscle, blood_signal):
        truth, ours = (np.array([feature(*pair) for pair in pairs]) for pairs in (real, drawn))
        assert abs(truth.mean() - ours.mean()) < 0.5 * truth.std(), feature.__name__


def pool_over_wall(image, mask):
    return (mask == LV).sum() / (mask == MYO).sum()


def rv_over_lv(image, mask):
    return (mask == RV).sum() / (mask == LV).sum()


def blood_over_muscle(image, mask):
    return image[mask == LV].mean() / image[mask == MYO].mean()


def blood_signal(image, mask):
    low, high = np.percentile(image, [1, 99])
    return ((image[mask == LV] - low) / (high - low)).clip(0, 1).mean()
