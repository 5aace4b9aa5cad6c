"""Label conventions."""

from __future__ import annotations

import numpy as np
import pytest

from xraygpt.common.errors import DataError
from xraygpt.segmentation.labels import LV, MYOCARDIUM, RV, to_structures


def test_conventions_are_converted():
    labels = np.array([[0, 1, 2, 3]])
    assert to_structures(labels, "acdc").tolist() == [[0, RV, MYOCARDIUM, LV]]
    assert to_structures(labels, "mnms").tolist() == [[0, LV, MYOCARDIUM, RV]]
    assert to_structures(labels.astype(np.float32), "emidec").tolist() == [[0, 3, 2, 4]]


@pytest.mark.parametrize(
    ("labels", "convention", "message"),
    [
        (np.array([0.0, 1.5]), "acdc", "not whole"),
        (np.array([0, 4]), "acdc", "value 4, but acdc has only 0 to 3"),
        (np.array([0, -1]), "acdc", "value -1"),
        (np.array([0]), "acdd", "use acdc, mnms"),
    ],
)
def test_other_values_are_refused(labels, convention, message):
    with pytest.raises(DataError, match=message):
        to_structures(labels, convention)
