"""What ships with the package: a small extract of a real CT, and a small trained model.

The CT is 24 slices of LIDC-IDRI-0001 around its one nodule, losslessly compressed, with the
readers' annotations; see ``LICENSE-DATA.md`` for its source and licence.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent


def extract_path() -> Path:
    """Return the folder with the DICOM files of the CT extract."""
    return _FOLDER / "series"


def xml_path() -> Path:
    """Return the readers' annotations of the extract, in the archive's XML."""
    return _FOLDER / "annotations.xml"


def model_path() -> Path:
    """Return the folder of the demonstration model; its ``README.md`` is the model card."""
    return _FOLDER / "model"
