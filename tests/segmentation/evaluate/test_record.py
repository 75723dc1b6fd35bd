"""evaluation.json: written as before, read from earlier files, and the means it holds."""

import json
import math

import pytest

from spcl_fast.segmentation.evaluate.record import (
    Evaluation,
    ScanScores,
    read_evaluation,
    write_evaluation,
)

# as version 0.1 wrote it
WRITTEN = """{
 "classes": [
  "RV",
  "LV"
 ],
 "scans": {
  "b_1": {
   "patient": "b",
   "dice": {
    "RV": 0.25,
    "LV": 0.75
   },
   "hd95_mm": {
    "RV": 4.0,
    "LV": 2.0
   },
   "image": "/data/b.nii.gz",
   "mask": "/data/b_gt.nii.gz",
   "frame": 1,
   "stack_axis": 0,
   "classes": [
    [
     0,
     0
    ],
    [
     420,
     1
    ]
   ],
   "prediction": "predictions/b_1_pred.nii.gz"
  },
  "a_1": {
   "patient": "a",
   "dice": {
    "RV": 0.5,
    "LV": 0.0
   },
   "hd95_mm": {
    "RV": 8.0,
    "LV": 0.0
   },
   "image": "/data/a.nii.gz",
   "mask": "/data/a_gt.nii.gz",
   "frame": null,
   "stack_axis": 2,
   "classes": null
  }
 },
 "dice": {
  "RV": 0.375,
  "LV": 0.375
 },
 "dice_mean": 0.375,
 "hd95_mm": {
  "RV": 6.0,
  "LV": 1.0
 },
 "hd95_mm_mean": 3.5,
 "labelled_scans": [
  "c_1"
 ],
 "num_training_scans": 12,
 "initialised_from": null
}"""


def test_a_file_is_written_as_before(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(WRITTEN)
    evaluation = read_evaluation(path)
    assert evaluation.scans["b_1"] == ScanScores(
        patient="b",
        dice={"RV": 0.25, "LV": 0.75},
        hd95_mm={"RV": 4.0, "LV": 2.0},
        image="/data/b.nii.gz",
        mask="/data/b_gt.nii.gz",
        frame=1,
        stack_axis=0,
        classes={0: 0, 420: 1},
        prediction="predictions/b_1_pred.nii.gz",
    )
    assert evaluation.labelled_scans == ("c_1",)
    write_evaluation(path, evaluation)
    assert path.read_text() == WRITTEN


def test_an_evaluation_of_another_data_set_has_no_training(tmp_path):
    content = json.loads(WRITTEN)
    for key in ("labelled_scans", "num_training_scans", "initialised_from"):
        del content[key]
    assert Evaluation.from_json(content).to_json() == content


def test_means():
    scans = {
        "a_1": ScanScores("a", {"x": 0.2, "y": 0.4}),
        "b_1": ScanScores("b", {"x": 1.0, "y": 0.0}),
        "a_2": ScanScores("a", {"x": 0.6, "y": 0.8}),
    }
    evaluation = Evaluation(("x", "y"), scans)
    assert scans["a_2"].dice_mean == pytest.approx(0.7)
    assert evaluation.dice == pytest.approx({"x": 0.6, "y": 0.4})
    assert evaluation.dice_mean == pytest.approx(0.5)
    assert evaluation.dice_by_patient() == pytest.approx({"a": 0.5, "b": 0.5})
    assert evaluation.dice_by_patient(["a_2"]) == pytest.approx({"a": 0.7})
    assert evaluation.hd95_mm == {}
    assert evaluation.summary() == "Dice 0.500 (x 0.600, y 0.400), HD95 undefined"
    assert math.isnan(Evaluation(("x",), {}).dice_mean)


def test_earlier_files_lack_what_came_later():
    scans = {"patient001_frame01": {"dice": {"LV": 1, "RV": 0.5}, "hd95_mm": {"LV": None}}}
    evaluation = Evaluation.from_json({"classes": ["LV", "RV"], "scans": scans})
    scores = evaluation.scans["patient001_frame01"]
    assert scores == ScanScores("patient001", {"LV": 1.0, "RV": 0.5})
    assert evaluation.labelled_scans == ()
    assert (evaluation.num_training_scans, evaluation.initialised_from) == (None, None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1], "there are no classes and no scans"),
        ({"classes": ["LV"]}, "there are no scans"),
        ({"classes": ["LV"], "scans": {"a": 3}}, "scan a must have a Dice of every class, got"),
        ({"classes": ["LV"], "scans": {"a": {"dice": {"LV": None}}}}, "scan a must have a Dice"),
        ({"classes": ["LV"], "scans": {"a": {"dice": {"RV": 1}}}}, "scan a has no Dice of LV"),
    ],
)
def test_what_is_no_evaluation(tmp_path, content, sentence):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=sentence) as error:
        read_evaluation(path)
    assert str(error.value).startswith(f"{path} cannot be used: ")


def test_classes_that_a_scan_does_not_annotate(tmp_path):
    nan = math.nan
    scans = {
        "a_1": ScanScores("a", {"RV": nan, "LV": 0.5, "A": nan}, {"RV": nan, "LV": 3.0, "A": nan}),
        "a_2": ScanScores("a", {"RV": 0.2, "LV": 0.8, "A": nan}, {"RV": 9.0, "LV": 1.0, "A": nan}),
    }
    scores = Evaluation(("RV", "LV", "A"), scans)
    write_evaluation(tmp_path / "evaluation.json", scores)
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["scans"]["a_1"]["dice"] == {"RV": None, "LV": 0.5, "A": None}
    for one in (scores, read_evaluation(tmp_path / "evaluation.json")):
        assert one.dice == {
            "RV": 0.2,
            "LV": pytest.approx(0.65),
            "A": pytest.approx(nan, nan_ok=True),
        }
        assert one.dice_mean == pytest.approx((0.2 + 0.65) / 2)
        assert one.dice_by_patient() == {"a": pytest.approx((0.5 + 0.5) / 2)}
        assert one.absences == {"RV": 1, "A": 2}
        assert one.summary() == "Dice 0.425 (RV 0.200, LV 0.650, A not annotated), HD95 5.5 mm"
