"""Which mask file belongs to which series."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.dicom.files import find_files
from data_prep.formats import image_stem, is_image
from data_prep.masks.references import MaskReferences, is_drawn_on, read_references
from data_prep.masks.regions import no_such_region
from data_prep.text import comparable


@dataclass(frozen=True)
class MaskIndex:
    """The masks below a path, by the series that they were drawn on.

    Parameters
    ----------
    references
        What each DICOM segmentation and structure set says it was drawn on.
    by_series_uid
        The same files by each SeriesInstanceUID that they name.
    by_stem
        Image files by their name without the format's ending.
    paths
        Every mask, each once.
    """

    references: Mapping[Path, MaskReferences]
    by_series_uid: Mapping[str, tuple[Path, ...]]
    by_stem: Mapping[str, tuple[Path, ...]]
    paths: tuple[Path, ...]

    def for_series(
        self,
        series_uid: str,
        patient_id: str,
        *,
        image_uids: Collection[str] = (),
    ) -> list[Path]:
        """Return the masks of a series: by what they refer to, or by their name.

        An image file belongs to a series if its name without the ending is the series' UID or
        the patient's ID. Where a patient has several series, name the files after the series: a
        file named after the patient is returned for each.

        Parameters
        ----------
        series_uid
            SeriesInstanceUID.
        patient_id
            PatientID; empty where there is none.
        image_uids
            SOPInstanceUIDs of its images, for masks that name no series.
        """
        series_uid, patient_id = comparable(series_uid), comparable(patient_id)
        found = {*self.by_series_uid.get(series_uid, ()), *self.by_stem.get(series_uid, ())}
        if image_uids:
            found |= {
                path
                for path, references in self.references.items()
                if is_drawn_on(references, series_uid, image_uids)
            }
        if patient_id and patient_id != series_uid:
            found |= {*self.by_stem.get(patient_id, ())}
        return sorted(found)

    def has_frame(self, path: Path, frame_uid: str) -> bool:
        """Tell whether a mask names a frame of reference; an empty one is none."""
        references = self.references.get(path)
        return bool(frame_uid) and references is not None and frame_uid in references.frame_uids

    @property
    def image_uids(self) -> frozenset[str]:
        """SOPInstanceUIDs of the images that masks without a series name."""
        return frozenset().union(
            *(each.image_uids for each in self.references.values() if not each.series_uids)
        )

    def check_choice(self, patterns: Sequence[str]) -> None:
        """Check that each pattern fits a region, as far as the names are known before reading.

        Raises
        ------
        MaskError
            ``no_such_region``, with the names that there are.
        """
        if self.by_stem:  # the labels of images are known when they are read
            return
        regions = [region for each in self.references.values() for region in each.regions]
        for pattern in patterns:
            if not any(region.matches(pattern) for region in regions):
                raise no_such_region(regions, [pattern])


def masks_of_series(path: str | os.PathLike[str]) -> MaskIndex:
    """Find the masks below a folder, or look at a single file.

    Files of other kinds are passed over, and so are hidden files and members of archives.

    Parameters
    ----------
    path
        Folder or file.

    Raises
    ------
    SeriesError
        ``not_found`` if there is nothing at `path`.
    MaskError
        ``unreadable_mask`` if a DICOM mask can't be parsed.
    """
    references: dict[Path, MaskReferences] = {}
    by_series_uid: dict[str, list[Path]] = {}
    by_stem: dict[str, list[Path]] = {}
    paths: list[Path] = []
    for file in find_files(Path(path)):
        if file.member is not None or file.path.name.startswith("."):
            continue
        if is_image(file.path):
            by_stem.setdefault(comparable(image_stem(file.path)), []).append(file.path)
        else:
            found = read_references(file.path)
            if found is None:
                continue
            references[file.path] = found
            for series_uid in sorted(found.series_uids):
                by_series_uid.setdefault(series_uid, []).append(file.path)
        paths.append(file.path)
    return MaskIndex(
        references,
        {series_uid: tuple(files) for series_uid, files in by_series_uid.items()},
        {stem: tuple(images) for stem, images in by_stem.items()},
        tuple(paths),
    )
