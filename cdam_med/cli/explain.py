"""``cdam-med explain`` and ``cdam-med demo``: case folders for nodules of a CT series."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdam_med.cli.command import (
    INPUT,
    RUNNING,
    DeviceOption,
    Frame,
    JsonOption,
    OverwriteOption,
    RefuseOption,
    RepairOption,
    as_command,
    choose_device,
    names,
    option,
)
from cdam_med.cli.terminal import (
    print_error,
    print_line,
    print_outcome,
    print_result,
    print_table,
    print_text,
    print_warning,
    progress_bar,
    working,
)

if TYPE_CHECKING:
    from rich.table import Table

    from cdam_med.pipeline import Explanation
    from data_prep import CTVolume, Nodule

WHAT, HOW = "What to explain", "How"
"""Panels of the options."""

UNKNOWN = "-"
"""Stands for a rating that wasn't given."""


@as_command
def demo(
    out: Annotated[Path, option("Where the case folder goes.")] = Path("cdam-med-demo"),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Explain a nodule of a real CT that ships with the package, without any network.

    The CT is an extract of LIDC-IDRI (CC BY 3.0), the model a small one trained on LIDC-IDRI.
    """
    with working("Reading the CT extract"):
        from cdam_med.demo import extract_path, xml_path
        from data_prep import read_series

        volume = read_series(extract_path())
        nodules, record = read_annotations(xml_path(), volume, min_readers=3)
    with working("Loading the model"):
        from cdam_med.models.store import load_model

        options = {"model": load_model("demo")}
    record |= {"overwrite": overwrite}
    _explain_nodules(volume, nodules, out, options=options, record=record, as_json=as_json)


@as_command
def explain(
    series: Annotated[
        Path,
        typer.Argument(
            metavar="SERIES",
            help="Folder or zip with the DICOM files of a CT series; or NIfTI, NRRD, MetaImage.",
        ),
    ],
    out: Annotated[Path, option("Where the case folders go, one for each nodule.")],
    overwrite: OverwriteOption = False,
    lidc_xml: Annotated[
        Path | None, option("LIDC-IDRI annotations: explain the nodules in them.", WHAT)
    ] = None,
    min_readers: Annotated[
        int, option("Take nodules that so many readers outlined.", WHAT, min=1)
    ] = 3,
    at: Annotated[
        str | None, option("Or this point in mm; needs --frame.", WHAT, metavar="X,Y,Z")
    ] = None,
    frame: Annotated[
        Frame | None, option("Of the point: ras as in NIfTI and 3D Slicer, lps as in DICOM.", WHAT)
    ] = None,
    targets: Annotated[str, option("Outputs of the model.", WHAT, metavar="all|NAME,...")] = "all",
    concept: Annotated[
        list[Path] | None,
        option(
            "Also a concept of 'cdam-med concept make'; may be given several times.",
            WHAT,
            metavar="FILE",
        ),
    ] = None,
    model: Annotated[str, option("'demo', or the folder of a trained model.", HOW)] = "demo",
    method: Annotated[
        str,
        option("A name that 'cdam-med methods' lists, with its default settings.", HOW),
    ] = "cdam",
    views: Annotated[
        str,
        option(
            "Planes to explain besides those that the model was trained on: axial, coronal, "
            "sagittal.",
            HOW,
            metavar="NAME,...",
        ),
    ] = "",
    series_uid: Annotated[
        str | None, option("Which series, where there are several.", INPUT)
    ] = None,
    stack: Annotated[
        int | None, option("Which stack of the series; see 'cdam-med check'.", INPUT, min=1)
    ] = None,
    repair: RepairOption = "",
    refuse: RefuseOption = "",
    device: DeviceOption = "auto",
    batch_size: Annotated[int, option("Slices per forward pass.", RUNNING, min=1)] = 32,
    as_json: JsonOption = False,
) -> None:
    """Explain the nodules of a CT series that its readers outlined, or any point of it."""
    point = _point(at, frame, lidc_xml)
    _check_files(series, lidc_xml, concept or (), out)
    with working("Loading the model"):
        from cdam_med.attribution.registry import check_method
        from cdam_med.data.views import check_views
        from cdam_med.targets import choose_targets
        from data_prep.problems import Policy

        # wrong names are refused before torch is loaded
        asked = choose_targets("all" if targets == "all" else names(targets))
        asked_views = check_views(names(views)) if views else ()
        check_method(method)
        Policy(repair=names(repair), refuse=names(refuse))
        from cdam_med.models.store import load_concept, load_model

        concepts = [load_concept(path) for path in concept or ()]
        loaded = load_model(model, device=choose_device(device))
    with working("Reading the series"):
        from data_prep import SeriesWarning, nodule_at, read_volume

        warnings.simplefilter("ignore", SeriesWarning)  # the same is printed below
        volume = read_volume(
            series, series_uid=series_uid, stack=stack, repair=names(repair), refuse=names(refuse)
        )
        for problem in volume.problems:
            print_warning(f"{problem.name}: {problem.message}")
        record: dict[str, Any] = {}
        if point is not None and frame is not None:
            nodules = [nodule_at(point, volume, frame=frame)]
        elif lidc_xml is not None:
            nodules, record = read_annotations(lidc_xml, volume, min_readers)
    options = {
        "model": loaded,
        "targets": (*asked, *concepts),
        "method": method,
        "views": asked_views,
        "batch_size": batch_size,
    }
    record |= {"overwrite": overwrite}
    _explain_nodules(volume, nodules, out, options=options, record=record, as_json=as_json)


def _check_files(series: Path, lidc_xml: Path | None, concepts: Sequence[Path], out: Path) -> None:
    """Refuse files that aren't there or can't be written, before libraries are loaded."""
    from data_prep.disk import check_parent
    from data_prep.errors import InputError

    check_parent(out / "case")
    if not series.exists():
        raise InputError(f"There is no {series}: give the folder or file of a CT series.")
    if lidc_xml is not None and not lidc_xml.is_file():
        raise InputError(f"There is no file {lidc_xml}: --lidc-xml takes the readers' XML.")
    for file in concepts:
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "doesn't exist"
            raise InputError(
                f"{file} {what}: --concept takes a file that 'cdam-med concept make' wrote; "
                "'cdam-med concept list COHORT' shows those of a cohort."
            )


def _point(
    at: str | None, frame: str | None, lidc_xml: Path | None
) -> tuple[float, float, float] | None:
    """Read the point, None where there is an annotation file in its place."""
    from data_prep.errors import InputError

    if (lidc_xml is None) == (at is None):
        raise InputError(
            "Say what to explain: either the nodules of an annotation file by --lidc-xml FILE, "
            "or one point by --at X,Y,Z and --frame."
        )
    if (at is None) != (frame is None):
        raise InputError(
            "A point is given by --at X,Y,Z and --frame ras or --frame lps together, so that "
            "left and right can't be mixed up."
        )
    if at is None:
        return None
    try:
        x, y, z = (float(number) for number in at.split(","))
    except ValueError:
        raise InputError(
            f"--at takes three numbers in mm with commas between, such as -72.5,40,190.2, "
            f"not {at!r}."
        ) from None
    return x, y, z


def read_annotations(
    path: Path, volume: "CTVolume", min_readers: int
) -> "tuple[list[Nodule], dict[str, Any]]":
    """Return the nodules in LIDC-IDRI's XML, and what the case's record says of the file.

    What else is marked there is printed.
    """
    import hashlib

    from data_prep.errors import InputError
    from data_prep.lidc import read_xml_findings

    nodules, left_out = read_xml_findings(path, volume, min_readers=min_readers)
    for finding in left_out:
        print_line(f"Left out, {finding.reason}: {finding.message}")
    if not nodules:
        raise InputError(
            f"No nodule in {path} was outlined by {min_readers} readers or more; lower "
            f"--min-readers, or name a point by --at."
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return nodules, {"annotation_sha256": sha256, "left_out": left_out}


def _explain_nodules(
    volume: "CTVolume",
    nodules: "Sequence[Nodule]",
    out: Path,
    *,
    options: Mapping[str, Any],
    record: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Explain nodules one by one: write each one's case folder and print what was found.

    A nodule that doesn't fit into the model's field of view doesn't keep the others from being
    explained. Options are those of `cdam_med.explain`, record those of `Explanation.save`.
    """
    from data_prep.disk import check_folder
    from data_prep.errors import CropError, InputError

    for nodule in nodules:
        check_folder(out / nodule.nodule_id, "case", overwrite=record["overwrite"])
    from cdam_med.pipeline import explain as explain_nodule

    cases, left_out = [], []
    for nodule in nodules:
        try:
            with progress_bar(f"Explaining {nodule.nodule_id}") as progress:
                explanation = explain_nodule(volume, nodule, progress=progress, **options)
        except CropError as error:
            print_error(str(error))
            left_out.append(nodule.nodule_id)
            continue
        folder = out / nodule.nodule_id
        with working(f"Writing {folder}"):
            explanation.save(folder, **record)
        predictions = explanation.predictions
        cases.append(
            {"nodule_id": nodule.nodule_id, "folder": str(folder), "predictions": predictions}
        )
        if not as_json:
            _print_predictions(explanation, folder)
    if as_json:
        print_outcome({"cases": cases, "left_out": left_out}, as_json=True)
    elif cases:
        _print_what_next(explanation)
    if left_out:
        raise InputError(
            f"{len(left_out)} of {len(nodules)} nodules could not be explained "
            f"({', '.join(left_out)}); the reasons are given above."
        )


def _print_predictions(explanation: "Explanation", folder: Path) -> None:
    from cdam_med.targets import MALIGNANCY_PROBABILITY

    print_table(_nodule_table(explanation))
    predictions = explanation.predictions
    print_result("", f"{MALIGNANCY_PROBABILITY}: {predictions[MALIGNANCY_PROBABILITY]:.0%}")
    for target in explanation.targets:
        if target.unit == "similarity":
            print_result(f"Concept {target.name}: similarity {predictions[target.name]:.3g}")
    print_result("", f"Case folder: {folder}", "")


def _print_what_next(explanation: "Explanation") -> None:
    from cdam_med.export.case import map_name
    from data_prep.statements import RATINGS_NOTE_SHORT, RESEARCH_ONLY

    print_text(
        "Model: malignancy as a logit, 0 where the model is undecided, the more above the more "
        "malignant; malignancy_probability is the same from 0 to 100 %. The biomarkers are on the "
        "readers' scales."
    )
    if explanation.nodule.readers:
        print_text("Readers: the median of their malignancy ratings, the mean of the others.")
    views = " and ".join(explanation.attribution.model_views)
    print_result("")
    print_text(
        "Open next, in a case folder: overview.png in any picture viewer; or, in 3D Slicer, "
        f"ct.nii.gz with {map_name(explanation.attribution.targets[0])} over it, the map of the "
        f"{views} slices, which the model predicts from. What a score is: "
        f"{explanation.method.meaning}"
    )
    print_result("")
    print_text(f"{RESEARCH_ONLY} {RATINGS_NOTE_SHORT}", style="bold")


def _nodule_table(explanation: "Explanation") -> "Table":
    """Lay out the predictions for a nodule, beside its readers' ratings, in 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from cdam_med.targets import MALIGNANCY, TARGETS
    from data_prep.ratings import RATING_RANGES
    from data_prep.text import printable

    nodule = explanation.nodule
    table = Table(
        title=Text(f"{printable(_nodule_title(nodule))}\n"),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("Target", no_wrap=True)
    table.add_column("Model", justify="right", no_wrap=True)
    if nodule.readers:
        table.add_column("Readers", justify="right", no_wrap=True)
        table.add_column("Each reader")
    table.add_column("Scale")
    for target in TARGETS:
        name, value = target.name, explanation.predictions[target.name]
        row = [name, f"{value:+.2f}" if target is MALIGNANCY else f"{value:z.1f}"]
        if nodule.readers:
            each = " ".join(_rating(name, reader.ratings, 0) for reader in nodule.readers)
            row += [_rating(name, nodule.ratings, 1), each]
        scale = "mm"
        if name in RATING_RANGES:
            low, high = RATING_RANGES[name]
            scale = f"{low} {target.low} - {high} {target.high}"
        table.add_row(*row, scale)
    return table


def _nodule_title(nodule: "Nodule") -> str:
    """Say which nodule it is and where."""
    letters = zip("RAS", "LPI", nodule.center_xyz_mm, strict=True)
    place = " ".join(f"{plus if mm >= 0 else minus} {abs(mm):.1f}" for plus, minus, mm in letters)
    count = len(nodule.readers)
    readers = f", {count} reader{'s' if count > 1 else ''}" if count else ""
    return f"{nodule.nodule_id}: centre at {place} mm{readers}"


def _rating(name: str, ratings: Mapping[str, int | float], decimals: int) -> str:
    if name not in ratings:
        return UNKNOWN
    # a reader's diameter is measured on the outline, so it isn't whole as the ratings are
    return f"{ratings[name]:.{1 if name == 'diameter' else decimals}f}"
