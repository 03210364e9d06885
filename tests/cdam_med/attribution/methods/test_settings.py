"""Settings without meaning are refused in a sentence, whatever their type."""

import math

import numpy as np
import pytest
import torch

from cdam_med.attribution.methods.settings import check_count, check_noise
from cdam_med.errors import MethodError


@pytest.mark.parametrize("value", [2.0, math.nan, "5", None, [5], torch.tensor(2.0)], ids=str)
def test_a_count_that_is_not_whole_is_refused(value):
    with pytest.raises(MethodError, match=r"^samples of \w+ must be at least 1, and whole, not "):
        check_count("smoothgrad", "samples", value)


@pytest.mark.parametrize("value", [2, True, np.int64(2), np.uint8(2), torch.tensor(2)], ids=repr)
def test_whole_numbers_of_any_type_are_counts(value):
    check_count("smoothgrad", "samples", value)
    with pytest.raises(MethodError, match=r"^samples of \w+ must be at least 3, and whole"):
        check_count("smoothgrad", "samples", value, at_least=3)


@pytest.mark.parametrize("value", ["a", None, 1j, -0.1, math.nan, math.inf], ids=str)
def test_noise_that_is_no_share_is_refused(value):
    with pytest.raises(MethodError, match=r"^noise of \w+ must be 0 or more and finite, not"):
        check_noise("smoothgrad", value)


@pytest.mark.parametrize("value", [0, 0.15, np.float32(0.15)], ids=repr)
def test_real_numbers_of_any_type_are_noise(value):
    check_noise("smoothgrad", value)
