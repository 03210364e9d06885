"""What ``demo`` and ``explain`` share: each nodule explained, saved as a case and printed."""

from collections.abc import Sequence
from pathlib import Path

from cdam_med.attribution.concept import Concept
from cdam_med.cli.tables import nodule_table
from cdam_med.cli.terminal import (
    print_error,
    print_json,
    print_result,
    print_table,
    print_text,
    progress_bar,
    working,
)
from cdam_med.export.case import map_name
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.pipeline import Explanation, explain
from cdam_med.targets import MALIGNANCY_PROBABILITY
from data_prep.errors import CropError, InputError
from data_prep.lidc import LeftOutFinding
from data_prep.nodules import Nodule
from data_prep.statements import RATINGS_NOTE_SHORT, RESEARCH_ONLY
from data_prep.volume import CTVolume


def explain_nodules(
    volume: CTVolume,
    nodules: Sequence[Nodule],
    model: NoduleViT,
    *,
    out: Path,
    overwrite: bool = False,
    annotation_sha256: str | None = None,
    unexplained: Sequence[LeftOutFinding] = (),
    targets: str | Sequence[str | Concept] = "all",
    method: str = "cdam",
    views: Sequence[str] = (),
    batch_size: int = 32,
    as_json: bool = False,
) -> None:
    """Explain nodules one by one: write each one's case folder and print what was found.

    A nodule that doesn't fit into the model's field of view doesn't keep the others from being
    explained.

    Parameters
    ----------
    volume : CTVolume
        The CT.
    nodules : sequence of Nodule
        Its nodules.
    model : NoduleViT
        The model.
    out : Path
        Where the case folders go, each under its nodule's id.
    overwrite : bool
        Replace case folders of an earlier run.
    annotation_sha256 : str, optional
        Hash of the file that the nodules were read from.
    unexplained : sequence of LeftOutFinding
        What else that file marks.
    targets, method, views, batch_size
        As `cdam_med.explain` takes them.
    as_json : bool
        Print the cases as JSON.

    Raises
    ------
    InputError
        A case folder can't be written, or, after the others are done, a nodule doesn't fit.
    """
    cases, left_out = [], []
    for nodule in nodules:
        try:
            with progress_bar(f"Explaining {nodule.nodule_id}") as progress:
                explanation = explain(
                    volume,
                    nodule,
                    model,
                    targets=targets,
                    method=method,
                    views=views,
                    batch_size=batch_size,
                    progress=progress,
                )
        except CropError as error:
            print_error(str(error))
            left_out.append(nodule.nodule_id)
            continue
        folder = out / nodule.nodule_id
        with working(f"Writing {folder}"):
            explanation.save(
                folder,
                overwrite=overwrite,
                annotation_sha256=annotation_sha256,
                left_out=unexplained,
            )
        cases.append(
            {
                "nodule_id": nodule.nodule_id,
                "folder": str(folder),
                "predictions": explanation.predictions,
            }
        )
        if not as_json:
            _print_predictions(explanation, folder)
    if as_json:
        print_json({"cases": cases, "left_out": left_out})
    elif cases:
        _print_what_next(explanation)
    if left_out:
        raise InputError(
            f"{len(left_out)} of {len(nodules)} nodules could not be explained "
            f"({', '.join(left_out)}); the reasons are given above."
        )


def _print_predictions(explanation: Explanation, folder: Path) -> None:
    print_table(nodule_table(explanation))
    probability = explanation.predictions[MALIGNANCY_PROBABILITY]
    print_result()
    print_result(f"{MALIGNANCY_PROBABILITY}: {probability:.0%}")
    for target in explanation.targets:
        if target.unit == "similarity":
            similarity = explanation.predictions[target.name]
            print_result(f"Concept {target.name}: similarity {similarity:.3g}")
    print_result()
    print_result(f"Case folder: {folder}")
    print_result()


def _print_what_next(explanation: Explanation) -> None:
    print_text(
        "Model: malignancy as a logit, 0 where the model is undecided, the more above the more "
        "malignant; malignancy_probability is the same from 0 to 100 %. The biomarkers are on the "
        "readers' scales."
    )
    if explanation.nodule.readers:
        print_text("Readers: the median of their malignancy ratings, the mean of the others.")
    views = " and ".join(explanation.attribution.model_views)
    print_result()
    print_text(
        "Open next, in a case folder: overview.png in any picture viewer; or, in 3D Slicer, "
        f"ct.nii.gz with {map_name(explanation.attribution.targets[0])} over it, the map of the "
        f"{views} slices, which the model predicts from. What a score is: "
        f"{explanation.method.meaning}"
    )
    print_result()
    print_text(f"{RESEARCH_ONLY} {RATINGS_NOTE_SHORT}", style="bold")
