"""Text in any character set: what pydicom writes is what Python's own codecs make, and is read."""

import unicodedata
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset

from data_prep.dicom import read_series
from data_prep.dicom.files import DicomFile
from data_prep.dicom.header import decode_text, index_files, is_decoded, read_header
from data_prep.text import comparable

# SpecificCharacterSet, text, Python's own codec
SETS = [
    ("ISO_IR 100", "Müller1", "latin-1"),
    ("ISO_IR 101", "Łukasz", "iso8859_2"),
    ("ISO_IR 144", "Иванов", "iso8859_5"),
    ("ISO_IR 126", "Διονυσιος", "iso8859_7"),
    ("ISO_IR 13", "ﾔﾏﾀﾞ", "shift_jis"),
    ("ISO_IR 166", "นาย", "tis_620"),
    ("ISO_IR 192", "患者1 Müller", "utf-8"),
    ("GB18030", "患者乗1", "gb18030"),
    ("GBK", "患者1", "gbk"),
    (["", "ISO 2022 IR 87"], "患者1", "iso2022_jp"),
    (["ISO 2022 IR 13", "ISO 2022 IR 87"], "患者", None),
    (["", "ISO 2022 IR 149"], "김희중", None),
]


def with_text(character_set: object, text: str):
    def edit(dataset: Dataset, k: int) -> None:
        dataset.SpecificCharacterSet = character_set
        dataset.PatientID = dataset.ConvolutionKernel = text

    return edit


@pytest.mark.parametrize(("character_set", "text", "codec"), SETS)
def test_what_another_library_wrote(write_ct_series, character_set, text, codec):
    series = write_ct_series(shape=(4, 4, 2), edit=with_text(character_set, text))
    stored = pydicom.dcmread(series.paths[0]).get_item("PatientID").value
    if codec is not None:
        assert stored.rstrip(b" ").replace(b"\x1b(B", b"") == text.encode(codec).replace(
            b"\x1b(B", b""
        )
    header = read_header(DicomFile(series.paths[0]))
    assert header is not None
    expected = unicodedata.normalize("NFC", text)
    assert header.patient_id == expected
    assert header.text("ConvolutionKernel") == expected
    assert index_files(series.folder).series[0].patient_id == expected


@pytest.mark.parametrize(
    ("character_set", "value", "text"),
    [
        # the standard's examples: PS3.5 H.3.1, I.2, K.2 (an escape for each part)
        (b"\\ISO 2022 IR 87", b"Yamada=\x1b$B" + bytes.fromhex("3b33 4544") + b"\x1b(B", "山田"),
        (b"\\ISO 2022 IR 149", b"Hong=\x1b$)C" + "洪".encode("euc_kr"), "洪"),
        (b"\\ISO 2022 IR 58", b"Zhang=\x1b$)A" + "张东".encode("gb2312"), "张东"),
        (b"ISO 2022 IR 100\\ISO 2022 IR 144", b"\xfc=\x1b-L" + "Ж".encode("iso8859_5"), "Ж"),
    ],
)
def test_code_extensions(character_set: bytes, value: bytes, text: str):
    assert decode_text(value, character_set).split("=")[1] == text


def test_one_patient_in_two_character_sets(write_ct_series, tmp_path: Path):
    """Two series of a patient stay with the patient, whatever wrote them."""
    ids = []
    for number, (character_set, text) in enumerate(
        [("ISO_IR 100", "Müller"), ("ISO_IR 192", "Mu\u0308ller "), ("GB18030", "Müller")]
    ):
        folder = tmp_path / str(number)
        write_ct_series(folder=folder, shape=(4, 4, 1), edit=with_text(character_set, text))
        ids.append(index_files(folder).series[0].patient_id)
    assert ids == ["Müller"] * 3


@pytest.mark.parametrize(
    "character_set",
    ["ISO IR 192", "iso_ir 192", "ISO_IR 192 ", "ISO_IR 192\\ISO 2022 IR 87", "UTF-8"],
)
def test_misspelt_names_of_character_sets(character_set: str):
    assert decode_text("患者".encode(), character_set.encode()) == "患者"


@pytest.mark.parametrize(
    ("character_set", "value"),
    [
        (b"ISO_IR 999", b"\xe6\x82\xa3"),
        (b"\xff\xfe", b"\xe6\x82\xa3"),
        (b"ROT13", b"\xe6\x82\xa3"),
        (b"ZLIB", b"\xe6\x82\xa3"),
        (b"A\0B", b"\xe6\x82\xa3"),
        (b"ISO_IR 192", "Müller".encode("latin-1")),
        (b"GB18030", b"\xff\xff"),
        (b"", b"\x1b$Q\xa1"),
        (b"\\ISO 2022 IR 87", b"\x1b$B\x80\x81\x1b(B"),
    ],
)
def test_what_cannot_be_decoded_is_kept_apart(character_set: bytes, value: bytes):
    text = decode_text(value, character_set)
    assert not is_decoded(text)
    assert text.encode("ascii", "surrogateescape") == value
    assert is_decoded(decode_text(b"plain", character_set))


def test_a_series_is_read_whatever_its_character_set(write_ct_series):
    """Nothing but names depends on it."""

    edit = with_text("ISO_IR 192", "患者")
    series = write_ct_series(shape=(12, 12, 3), has_body=True, edit=edit)
    for path in series.paths:
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"ISO_IR 999"))
    header = read_header(DicomFile(series.paths[0]))
    assert header is not None
    assert not is_decoded(header.patient_id)
    assert header.text("ConvolutionKernel").isprintable()
    assert read_series(series.folder).shape == (12, 12, 3)


def test_form_of_letters():
    assert comparable("Mu\u0308ller \0") == "Müller"
