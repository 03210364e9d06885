"""The README's Python runs as it is written, on the CT extract and the model that ship."""

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from cdam_med.demo import extract_path, xml_path
from data_prep.geometry import axcodes

ROOT = Path(__file__).resolve().parents[1]
PATHS = re.compile(r"^series_dir, xml, out = .+\n", re.MULTILINE)


def python_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the block, its one line of paths replaced, and return its variables."""
    (block,) = python_blocks()
    code, n_replaced = PATHS.subn("", block)
    assert n_replaced == 1
    out = tmp_path_factory.mktemp("readme") / "nodule_1"
    namespace: dict[str, Any] = {"series_dir": extract_path(), "xml": xml_path(), "out": out}
    exec(compile(code, "README.md", "exec"), namespace)
    return namespace


def test_the_map_lies_on_the_nodule_in_the_patient(names):
    scores, affine, nodule = names["scores"], names["affine"], names["nodule"]
    assert scores.dtype == np.float32
    assert scores.min() < 0 < scores.max()
    assert axcodes(affine) == ("R", "A", "S")
    middle = affine @ [*(np.array(scores.shape) - 1) / 2, 1]
    np.testing.assert_allclose(middle[:3], nodule.center_xyz_mm, atol=1e-6)


def test_the_comments_say_what_the_names_hold(names):
    volume, nodule = names["volume"], names["nodule"]
    assert volume.hu.shape == nodule.mask.shape == volume.shape
    predictions = names["explanation"].predictions
    assert set(predictions) - {"malignancy_probability"} <= set(nodule.ratings)
    assert len(nodule.readers) >= 3
    odds = predictions["malignancy_probability"] / (1 - predictions["malignancy_probability"])
    assert predictions["malignancy"] == pytest.approx(np.log(odds))


def test_the_folder_holds_the_files_that_are_promised(names):
    record = json.loads((names["out"] / "case.json").read_text(encoding="utf-8"))
    assert {path.name for path in names["out"].iterdir()} == set(record["files"])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    promised = re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE)
    assert len(promised) == 5
    assert set(promised) <= set(record["files"])
    saved = nibabel.load(names["out"] / "attribution_malignancy.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), names["scores"])
    np.testing.assert_allclose(saved.affine, names["affine"], atol=1e-5)


def test_the_reference_has_every_file_and_field_of_the_record(names, tmp_path):
    page = (ROOT / "docs/reference/case_folder.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    asked = (names["volume"], names["nodule"], names["model"])
    further = names["explain"](*asked, targets="malignancy", views="coronal")
    record = json.loads((further.save(tmp_path / "case") / "case.json").read_text("utf-8"))
    files = {file_pattern(name) for name in record["files"]}
    assert {row for row in rows if re.search(r"\.(json|png|gz|sha256)$", row)} == files
    fields = [row for row in rows if not re.search(r"\.(json|png|gz|sha256)$", row)]
    assert len(set(fields)) == len(fields)
    assert set(fields) == set(field_patterns(record))


def file_pattern(name: str) -> str:
    view = r"attribution_[a-z]+_(axial|coronal|sagittal)\.nii\.gz"
    if re.fullmatch(view, name):
        return "attribution_<target>_<view>.nii.gz"
    return re.sub(r"^attribution_[a-z]+(?=[._])", "attribution_<target>", name)


VARYING = {
    "inputs.problems": "NAME",
    "versions": "PACKAGE",
    "files": "FILE",
    "nodule.consensus_ratings": "NAME",
    "predictions": "NAME",
    "targets": "NAME",
    "method.views": "VIEW",
}


def field_patterns(value: object, path: str = "") -> list[str]:
    """List the record's fields, keys that vary replaced by what they stand for."""
    if not isinstance(value, dict) or path in ("model.config", "method.settings"):
        return [path]
    found: dict[str, None] = {}
    for key, each in value.items():
        name = VARYING.get(path, key)
        found.update(dict.fromkeys(field_patterns(each, f"{path}.{name}" if path else name)))
    return list(found)
