"""Cross-validation: nodules are predicted by models, and a baseline, that never saw the patient."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cdam_med.data.nodule_slices import NoduleSlices
from cdam_med.models.store import load_model
from cdam_med.training.cross_validation import (
    Predictions,
    cross_validate,
    figures_of,
    folds_of_patients,
    middle_slice_outputs,
)
from cdam_med.training.trainer import Recipe, build_model
from data_prep.errors import InputError

MakeDiscs = Callable[..., NoduleSlices]


@pytest.fixture
def short(recipe: Recipe) -> Recipe:
    return recipe.model_copy(
        update={"fine_tuning": recipe.fine_tuning.model_copy(update={"epochs": 1})}
    )


def test_predictions_come_from_models_of_the_other_patients(
    make_discs: MakeDiscs, short: Recipe, weights: Path, executor: Executor
) -> None:
    shuffle = np.random.default_rng(0).permutation(24)
    nodules = make_discs(24).select(shuffle)  # the nodules of a patient aren't neighbours
    lines: list[str] = []
    predictions = cross_validate(
        short,
        nodules,
        backbone_weights=weights,
        n_folds=2,
        executor=executor,
        report=lines.append,
    )
    assert sorted(set(predictions.fold)) == [1, 2]
    patients = np.array(nodules.patient_ids)
    for fold, job in zip((1, 2), executor.jobs, strict=True):
        test = predictions.fold == fold
        assert not set(patients[test]) & set(patients[~test])
        # what was handed out: these patients to train on, those to predict
        training, tested = (part for part in job if isinstance(part, NoduleSlices))
        assert set(training.patient_ids) == set(patients[~test])
        assert set(tested.patient_ids) == set(patients[test])
        # and what came back is what a model of the others says, made once more
        others = nodules.select(np.flatnonzero(~test))
        model = build_model(short, others, backbone_weights=weights, report=lambda line: None)
        again = middle_slice_outputs(model, nodules.select(np.flatnonzero(test)))
        np.testing.assert_array_equal(predictions.outputs[test], again)
        decided = ~test & nodules.has_class
        ruler = LogisticRegression().fit(
            nodules.diameter_mm[decided, None], nodules.malignant[decided]
        )
        np.testing.assert_allclose(
            predictions.diameter_logits[test],
            ruler.decision_function(nodules.diameter_mm[test, None]),
            rtol=1e-5,
        )
    assert [line.split(" epoch")[0] for line in lines] == [
        "fold 1/2: fine-tuning",
        "fold 1/2: recovery",
        "fold 2/2: fine-tuning",
        "fold 2/2: recovery",
    ]


@pytest.mark.slow
def test_a_kept_model_is_that_of_its_fold_and_names_what_it_never_saw(
    make_discs: MakeDiscs, short: Recipe, weights: Path, executor: Executor, tmp_path: Path
) -> None:
    nodules = make_discs(24)
    predictions = cross_validate(
        short,
        nodules,
        backbone_weights=weights,
        n_folds=2,
        executor=executor,
        report=lambda line: None,
        models_dir=tmp_path / "folds",
    )
    assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == ["1", "2"]
    for fold in (1, 2):
        folder = tmp_path / "folds" / str(fold)
        test = np.flatnonzero(predictions.fold == fold)
        names = (folder / "test_nodules.txt").read_text().split()
        assert names == [nodules.nodule_ids[index] for index in test]
        assert "not for diagnosis" in (folder / "README.md").read_text()
        again = middle_slice_outputs(load_model(folder), nodules.select(test))
        # stored in half precision
        np.testing.assert_allclose(again, predictions.outputs[test], rtol=0.01, atol=0.01)


def test_every_class_is_spread_over_the_folds(make_discs: MakeDiscs) -> None:
    nodules = make_discs(120)
    for train, test in folds_of_patients(nodules, n_folds=5, seed=0):
        assert len(train) + len(test) == 120
        for low, high in ((1, 2.9), (3, 3), (3.1, 5)):
            ours = (nodules.malignancy >= low) & (nodules.malignancy <= high)
            assert abs(ours[test].sum() - ours.sum() / 5) <= 2


@pytest.mark.parametrize("n_folds", [0, 1, 13])
def test_folds_that_cannot_be_made_are_refused(make_discs: MakeDiscs, n_folds: int) -> None:
    with pytest.raises(InputError, match=rf"{n_folds} folds can't be made"):
        folds_of_patients(make_discs(24), n_folds=n_folds, seed=0)


def test_folds_without_one_class_to_train_on_are_refused(
    make_discs: MakeDiscs, short: Recipe, weights: Path, executor: Executor
) -> None:
    nodules = make_discs(24)
    malignant = np.flatnonzero(nodules.has_class & nodules.malignant)
    # all that is malignant is one patient's
    patient = nodules.patient_ids[malignant[0]]
    of_others = [i for i in malignant if nodules.patient_ids[i] != patient]
    few = nodules.select(np.setdiff1d(np.arange(24), of_others))
    with pytest.raises(InputError, match="no benign or no malignant"):
        cross_validate(
            short,
            few,
            backbone_weights=weights,
            n_folds=2,
            executor=executor,
            report=lambda line: None,
        )
    assert not executor.jobs


def test_folds_with_a_single_value_to_train_on_are_refused(make_discs: MakeDiscs) -> None:
    nodules = make_discs(24)
    nodules.biomarkers[:, 1] = 6.0
    nodules.biomarkers[0, 1] = 5.0  # missing in one of the folds
    with pytest.raises(InputError, match="a single value of calcification to train on"):
        folds_of_patients(nodules, n_folds=2, seed=0)


def test_outputs_are_of_the_middle_slice_without_the_margin(
    make_discs: MakeDiscs, short: Recipe, weights: Path
) -> None:
    nodules = make_discs(70)
    model = build_model(
        short, nodules.select(np.arange(16)), backbone_weights=weights, report=lambda line: None
    )
    outputs = middle_slice_outputs(model, nodules)
    assert outputs.shape == (70, 9)
    changed = make_discs(70)
    changed.slices[:, [0, 2]] = -7.0
    changed.slices[:, :, :16] = 1e6
    changed.slices[:, :, -16:] = 1e6
    changed.slices[..., :16] = 1e6
    changed.slices[..., -16:] = 1e6
    np.testing.assert_allclose(middle_slice_outputs(model, changed), outputs, atol=1e-5)
    changed.slices[:, 1, 20, 20] = 1e6
    assert np.abs(middle_slice_outputs(model, changed) - outputs).max() > 1e-3


def test_figures_are_of_the_decided_nodules_and_all_biomarkers(make_discs: MakeDiscs) -> None:
    nodules = make_discs(60)
    random = np.random.default_rng(0)
    outputs = random.normal(size=(60, 9)).astype(np.float32)
    outputs[:, 6] = nodules.diameter_mm - 2
    outputs[~nodules.has_class, 0] = 1e3  # the undecided aren't judged
    fold = np.arange(60) // 2 % 3 + 1
    result = figures_of(Predictions(outputs, random.normal(size=60), fold), nodules)
    decided = nodules.has_class
    assert (result.n_folds, result.n_nodules) == (3, 50)
    assert result.n_malignant == np.sum(nodules.malignancy > 3)
    assert result.n_benign == np.sum(nodules.malignancy < 3)
    ours = [name for name, known in zip(nodules.patient_ids, decided, strict=True) if known]
    assert result.n_patients == len(set(ours))
    auc = roc_auc_score(nodules.malignant[decided], outputs[decided, 0])
    assert result.model.auc.value == pytest.approx(auc)
    assert result.diameter.auc.value != result.model.auc.value
    diameter = result.biomarkers["diameter"]
    assert diameter.mean_absolute_error == pytest.approx(2, rel=1e-4)
    assert diameter.pearson == pytest.approx(1)
