"""The nine targets of a nodule, by name."""

import pytest

from cdam_med.errors import TargetError
from cdam_med.targets import TARGET_NAMES, choose_targets


def test_choice_of_targets() -> None:
    assert choose_targets("all") == TARGET_NAMES
    assert choose_targets("margin") == ("margin",)
    assert choose_targets(["texture", "malignancy"]) == ("texture", "malignancy")
    with pytest.raises(TargetError, match=r"'malignacy'; did you mean 'malignancy'.*sphericity"):
        choose_targets("malignacy")
    with pytest.raises(TargetError, match=r"'xyz'.*malignancy, subtlety"):
        choose_targets(["margin", "xyz"])
    with pytest.raises(TargetError, match="once"):
        choose_targets(["margin", "margin"])
    with pytest.raises(TargetError, match="left empty"):
        choose_targets([])
