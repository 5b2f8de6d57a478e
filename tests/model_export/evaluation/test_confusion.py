import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score

from model_export.evaluation.confusion import macro_f1, quadratic_weighted_kappa, tally_confusion


def test_they_are_scikit_learn_s_on_the_rows_behind() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        gold, chosen = random.integers(0, random.integers(1, 5), 30), random.integers(0, 4, 30)
        [confusion] = tally_confusion(np.zeros_like(gold), gold, chosen, 4)
        expected = f1_score(gold, chosen, labels=np.unique(gold), average="macro", zero_division=0.0)
        for scale in (1, 1 / 30):  # counts, or shares
            assert macro_f1(scale * confusion) == pytest.approx(expected)
            kappa = cohen_kappa_score(gold, chosen, labels=range(4), weights="quadratic")
            assert quadratic_weighted_kappa(scale * confusion) == pytest.approx(kappa)


def test_where_all_is_one_grade_kappa_is_undefined() -> None:
    confusion = np.diag([0.0, 7.0, 0.0])
    assert np.isnan(quadratic_weighted_kappa(confusion))
    assert macro_f1(confusion) == 1
