"""Examples: parts that belong together."""

import pytest
import torch

from cdam_med.evaluation.examples import Examples
from data_prep.errors import InputError

PARTS = {
    "ids": ("a", "b", "c"),
    "groups": ("p", "p", "q"),
    "images": torch.rand(3, 1, 4, 6),
    "targets": (0, 1, 0),
    "labels": ("x", "", "x"),
    "masks": torch.zeros(3, 4, 6, dtype=torch.bool),
}


def test_some_of_them():
    chosen = Examples(**PARTS).select([2, 0])
    assert chosen.ids == ("c", "a")
    assert chosen.groups == ("q", "p")
    assert chosen.targets == (0, 0)
    assert chosen.labels == ("x", "x")
    assert torch.equal(chosen.images, PARTS["images"][[2, 0]])
    assert chosen.masks.shape == (2, 4, 6)
    assert len(chosen) == 2


def test_targets_and_masks_need_not_be_known():
    chosen = Examples(**PARTS | {"targets": None, "masks": None}).select([1])
    assert chosen.targets is None
    assert chosen.masks is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ids": ("a", "b", "a")}, "2 names for 3 images"),
        ({"groups": ("p",)}, "one entry an image in groups, not 1 for 3"),
        ({"targets": (0, 1)}, "in targets"),
        ({"labels": ()}, "in labels"),
        ({"ids": ("a", "b")}, "in groups"),
        ({"ids": ()}, "at least one image"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Examples(**PARTS | wrong)


def test_masks_of_another_size_are_refused():
    masks = torch.zeros(3, 2, 3, dtype=torch.bool)
    # the shapes in the types say so first, where they are checked
    with pytest.raises(Exception, match="masks"):
        Examples(**PARTS | {"masks": masks})
