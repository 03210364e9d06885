"""The cases that readers are compared on: each writes one series into a folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from defective_series import (
    AXIAL,
    CORONAL,
    OTHER,
    Scene,
    Stack,
    change_syntax,
    localizer,
    multi_frame,
    new_uid,
    restart_uids,
    rotated,
    screenshot,
    without,
    write,
)

MAIN = Scene()
Write = Callable[[Path], Sequence[Scene]]


@dataclass(frozen=True)
class Case:
    """A defect.

    Parameters
    ----------
    name
        For the table.
    must_be_said
        Whether a volume alone hides something: a choice among several, slices left out or made up.
    files
        Writes the files and returns the scenes that may be read, none if nothing can.
    """

    name: str
    must_be_said: bool
    files: Write

    def write(self, folder: Path) -> Sequence[Scene]:
        restart_uids()
        return self.files(folder)


def _plain(stack: Stack, *, must_be_said: bool = False) -> tuple[bool, Write]:
    def make(folder: Path) -> Sequence[Scene]:
        write(stack.datasets(), folder)
        return [stack.scene]

    return must_be_said, make


def _mixed(*stacks: Stack) -> tuple[bool, Write]:
    """Several stacks under one series."""

    def make(folder: Path) -> Sequence[Scene]:
        common = {"SeriesInstanceUID": new_uid(), "FrameOfReferenceUID": new_uid()}
        datasets = [one for stack in stacks for one in stack.datasets(**common)]
        for number, dataset in enumerate(datasets):
            dataset.InstanceNumber = number + 1
        write(datasets, folder)
        return [stack.scene for stack in stacks]

    return True, make


def _two_series(folder: Path) -> Sequence[Scene]:
    write(Stack().datasets(SeriesNumber=1), folder, "a")
    write(without(Stack(OTHER), *range(8)).datasets(SeriesNumber=2), folder, "b")
    return [MAIN, OTHER]


def _with_extra(make: Callable[[], object]) -> Write:
    """A stack and one more image under the same series."""

    def write_both(folder: Path) -> Sequence[Scene]:
        datasets = Stack().datasets()
        extra = make()
        extra.SeriesInstanceUID = datasets[0].SeriesInstanceUID
        extra.FrameOfReferenceUID = datasets[0].FrameOfReferenceUID
        extra.InstanceNumber = len(datasets) + 1
        write([*datasets, extra], folder)
        return [MAIN]

    return write_both


def _missing_ends(folder: Path) -> Sequence[Scene]:
    datasets = Stack().datasets(ImagesInAcquisition=40)
    write(datasets[2:-3], folder)
    return [MAIN]


def _copies(folder: Path) -> Sequence[Scene]:
    paths = write(Stack().datasets(), folder)
    for path in paths[5:8]:
        (folder / f"copy_{path.name}").write_bytes(path.read_bytes())
    return [MAIN]


def _phases(second: Scene, **differing: tuple[object, object]) -> Write:
    """Two images at every position, told apart by some attributes (or by none)."""

    def make(folder: Path) -> Sequence[Scene]:
        common = {"SeriesInstanceUID": new_uid(), "FrameOfReferenceUID": new_uid()}
        number = 0
        for phase, scene in enumerate((MAIN, second)):
            chosen = {name: values[phase] for name, values in differing.items()}
            datasets = Stack(scene).datasets(**common, **chosen)
            for dataset in datasets:
                dataset.InstanceNumber = (number := number + 1)
            write(datasets, folder, f"phase{phase}_")
        return [MAIN, second]

    return make


def _numbered(number: Callable[[int], int | None]) -> Write:
    def make(folder: Path) -> Sequence[Scene]:
        datasets = Stack().datasets()
        for k, dataset in enumerate(datasets):
            del dataset.InstanceNumber
            if number(k) is not None:
                dataset.InstanceNumber = number(k)
        write(datasets, folder)
        return [MAIN]

    return make


def _jittered(stack: Stack, change: Callable[[np.ndarray], np.ndarray]) -> Write:
    """Positions in the headers that differ a little from where the slices are."""

    def make(folder: Path) -> Sequence[Scene]:
        datasets = stack.datasets()
        for dataset in datasets:
            x, y, z = map(float, dataset.ImagePositionPatient)
            dataset.ImagePositionPatient = [x, y, round(float(change(np.array(z))), 6)]
        write(datasets, folder)
        return [MAIN]

    return make


def _no_rescale(stack: Stack) -> Write:
    def make(folder: Path) -> Sequence[Scene]:
        datasets = stack.datasets()
        for dataset in datasets:
            del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
        write(datasets, folder)
        return [MAIN]

    return make


def _syntax(uid: str) -> Write:
    def make(folder: Path) -> Sequence[Scene]:
        change_syntax(write(Stack().datasets(), folder), uid)
        return [MAIN]

    return make


def _enhanced(stack: Stack) -> Write:
    def make(folder: Path) -> Sequence[Scene]:
        write([multi_frame(stack)], folder)
        return [MAIN]

    return make


def _truncated(folder: Path) -> Sequence[Scene]:
    path = write(Stack().datasets(), folder)[30]
    path.write_bytes(path.read_bytes()[:5000])
    return [MAIN]


def _garbage(folder: Path) -> Sequence[Scene]:
    write(Stack().datasets(), folder)
    noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    (folder / "garbage.dcm").write_bytes(noise)
    return [MAIN]


def _link_loop(folder: Path) -> Sequence[Scene]:
    write(Stack().datasets(), folder)
    (folder / "again").symlink_to(folder, target_is_directory=True)
    return [MAIN]


def _absurd_frames(folder: Path) -> Sequence[Scene]:
    dataset = multi_frame(Stack())
    dataset.Rows = dataset.Columns = 65535
    dataset.NumberOfFrames = 10000
    write([dataset], folder)
    return []


def _absurd_slices(folder: Path) -> Sequence[Scene]:
    datasets = Stack().datasets()
    for dataset in datasets:
        dataset.Rows = dataset.Columns = 65535
    write(datasets, folder)
    return []


_RNG = np.random.default_rng(2)
_COARSE = without(Stack(shape=(48, 45), spacing_mm=(2.0, 2.0)), *range(9))
_ZOOMED = without(Stack(spacing_mm=(1.0, 1.0)), *range(9))
_FINE = Stack(offsets_mm=tuple(np.arange(-40, 41) * 0.625))
_TILT = np.radians(15.0)
_TILTED = Stack(
    axes_lps=((1.0, 0.0, 0.0), (0.0, np.cos(_TILT), -np.sin(_TILT))), step_lps=(0.0, 0.0, 1.0)
)
_VARIABLE = Stack(offsets_mm=tuple(np.cumsum([-39.0, *([1.25] * 40), *([2.5] * 11)])))
_MIXED_RESCALE = Stack(rescale=lambda k: ((1.0, -1024.0), (0.5, -1000.0))[k % 2])


def _case(name: str, made: tuple[bool, Write]) -> Case:
    return Case(name, *made)


CASES: tuple[Case, ...] = (
    _case("nothing wrong", _plain(Stack())),
    Case("two series in a folder", True, _two_series),
    _case(
        "two orientations in a series",
        _mixed(Stack(), Stack(axes_lps=CORONAL, offsets_mm=tuple(np.arange(-10.0, 11.0, 2.0)))),
    ),
    _case(
        "two matrix sizes",
        _mixed(Stack(), without(Stack(shape=(48, 45), spacing_mm=(2.0, 2.0)), *range(9))),
    ),
    _case("two pixel spacings", _mixed(Stack(), without(Stack(spacing_mm=(1.0, 1.0)), *range(9)))),
    Case("localizer among the slices", True, _with_extra(localizer)),
    Case("secondary capture among the slices", True, _with_extra(screenshot)),
    _case("1 slice missing", _plain(without(Stack(), 8), must_be_said=True)),
    _case("3 slices missing", _plain(without(Stack(), 6, 7, 8), must_be_said=True)),
    Case("5 slices missing at the ends (headers count 40)", True, _missing_ends),
    Case("3 slices twice (exact copies)", False, _copies),
    Case(
        "two time points, same positions",
        True,
        _phases(OTHER, TemporalPositionIdentifier=(1, 2), AcquisitionNumber=(1, 2)),
    ),
    Case(
        "two reconstructions, same positions",
        True,
        _phases(Scene(tissue_hu=55.0), ConvolutionKernel=("STANDARD", "LUNG")),
    ),
    Case("two images a position, nothing tells them apart", True, _phases(OTHER)),
    _case("spacing 1.25 mm, then 2.5 mm", _plain(_VARIABLE, must_be_said=True)),
    _case("gantry tilt 15°", _plain(_TILTED)),
    Case(
        "positions off by 2 µm",
        False,
        _jittered(Stack(), lambda z: z + _RNG.uniform(-0.002, 0.002)),
    ),
    Case(
        "0.625 mm, positions rounded to 0.01 mm",
        False,
        _jittered(_FINE, lambda z: np.round(z, 2)),
    ),
    Case("InstanceNumber absent", False, _numbered(lambda k: None)),
    Case("InstanceNumber reversed", False, _numbered(lambda k: 40 - k)),
    Case("InstanceNumber wrong (7k mod 41)", False, _numbered(lambda k: 7 * k % 41)),
    Case("InstanceNumber all the same", False, _numbered(lambda k: 1)),
    _case("rescale differs by slice", _plain(_MIXED_RESCALE)),
    Case("no rescale, stored = HU + 1024", True, _no_rescale(Stack(is_signed=False))),
    _case(
        "signed, padding -2000 (-3024 after rescale)",
        _plain(Stack(padding_value=-2000)),
    ),
    _case(
        "unsigned, padding 63536 (overflow)",
        _plain(Stack(is_signed=False, padding_value=63536)),
    ),
    _case("prone", _plain(Stack(axes_lps=((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))))),
    _case("feet first", _plain(Stack(axes_lps=((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))))),
    _case("coronal", _plain(Stack(axes_lps=CORONAL))),
    _case("oblique (20° and 10°)", _plain(Stack(axes_lps=rotated(20.0, 10.0)))),
    Case("RLE", False, _syntax("1.2.840.10008.1.2.5")),
    Case("JPEG 2000 (lossless)", False, _syntax("1.2.840.10008.1.2.4.90")),
    Case("JPEG-LS", False, _syntax("1.2.840.10008.1.2.4.80")),
    Case("JPEG Lossless", False, _syntax("1.2.840.10008.1.2.4.70")),
    Case("deflated", False, _syntax("1.2.840.10008.1.2.1.99")),
    Case("enhanced multi-frame", False, _enhanced(Stack(axes_lps=AXIAL))),
    Case("enhanced multi-frame, rescale differs by frame", False, _enhanced(_MIXED_RESCALE)),
    Case("a file ends in its pixels", True, _truncated),
    Case("a file of noise named .dcm", True, _garbage),
    Case("a link that leads back", False, _link_loop),
    Case("header claims 65535 x 65535 x 10000 frames", True, _absurd_frames),
    Case("headers claim 65535 x 65535 pixels", True, _absurd_slices),
)
