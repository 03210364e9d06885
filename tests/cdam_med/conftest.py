"""What tests share: a small model with random weights, the CT that ships, a cohort of it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from cdam_med.cli import app
from cdam_med.data.transforms import InputSpec
from cdam_med.demo import extract_path, xml_path
from cdam_med.models.backbone import BackboneSpec
from cdam_med.models.nodule_vit import ModelConfig, NoduleViT
from data_prep import CTVolume, Nodule, read_lidc_xml, read_series

HERE = Path(__file__).resolve().parent
sys.path.extend(
    [str(HERE / "attribution"), str(HERE.parent / "oracles")]
)  # for modules beside tests


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """A grid of 4 x 4 patches over 24 mm, predictions from two views."""
    return ModelConfig(
        name="tiny",
        backbone=BackboneSpec(architecture="vit_tiny_patch16_224", image_size=64),
        input=InputSpec(field_of_view_mm=24.0, spacing_mm=1.0, image_size=64),
        views=("axial", "sagittal"),
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config: ModelConfig) -> NoduleViT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NoduleViT(tiny_config).eval()


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="session")
def volume() -> CTVolume:
    """A real CT extract, which ships with the package."""
    return read_series(extract_path())


@pytest.fixture(scope="session")
def nodule(volume: CTVolume) -> Nodule:
    """Its nodule."""
    (found,) = read_lidc_xml(xml_path(), volume)
    return found


@pytest.fixture(scope="session")
def at(nodule: Nodule) -> list[str]:
    """The options of ``explain`` for the nodule's centre."""
    return ["--at", ",".join(repr(float(mm)) for mm in nodule.center_xyz_mm), "--frame", "ras"]


@pytest.fixture(scope="session")
def make_model_folder(
    tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[float], Path]:
    def make(field_of_view_mm: float) -> Path:
        """Save a small model with random weights, as training would leave it."""
        field = InputSpec(field_of_view_mm=field_of_view_mm, spacing_mm=1.0, image_size=64)
        folder = tmp_path_factory.mktemp("model")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            NoduleViT(tiny_config.model_copy(update={"input": field})).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def model_folder(make_model_folder: Callable[[float], Path]) -> Path:
    return make_model_folder(48.0)


@pytest.fixture(scope="session")
def cohort(volume: CTVolume, nodule: Nodule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nodule of the extract, and two points beside it, as a cohort."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = ["series_uid,x,y,z,frame,malignancy"]
    for number, shift_mm in enumerate(([0, 0, 0], [8, 0, 0], [0, 8, 0])):
        x, y, z = nodule.center_xyz_mm + shift_mm
        rows.append(f"{volume.series_uid},{x},{y},{z},ras,{5 - 2 * number}")
    (folder / "nodules.csv").write_text("\n".join(rows))
    options = ["--nodules", folder / "nodules.csv", "--out", folder / "cohort"]
    arguments = ["prepare", "series", extract_path(), *options]
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.stderr
    return folder / "cohort"
