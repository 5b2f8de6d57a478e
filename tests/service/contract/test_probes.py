import math

import pytest

from service.contract.labels import LabelDistribution
from service.contract.probes import Probe, ProbeNote, check_probes, largest_difference
from service.errors import ProbeMismatchError

PROBE = Probe(query="q", note=ProbeNote(), criteria="c", distribution=(0.25, 0.75), label_mass=0.9)


def test_the_expected_distribution_passes() -> None:
    found = LabelDistribution((0.2505, 0.7495), 0.9)
    assert check_probes([PROBE], [found], tolerance=0.001) == pytest.approx(0.0005)


@pytest.mark.parametrize(
    "found",
    [
        LabelDistribution((0.3, 0.7), 0.9),
        LabelDistribution((0.25, 0.75), 0.5),
        LabelDistribution((math.nan, math.nan), 0.9),
    ],
    ids=["distribution", "label mass", "not a number"],
)
def test_a_different_distribution_is_refused(found: LabelDistribution) -> None:
    with pytest.raises(ProbeMismatchError, match=r"1 of 2 probes differ by more than 0\.001"):
        check_probes([PROBE, PROBE], [LabelDistribution((0.25, 0.75), 0.9), found], tolerance=0.001)


def test_probes_are_rendered_as_canonical_text() -> None:
    probe = Probe(
        query=" a  b ",
        note=ProbeNote(title=None, body="x\ny"),
        criteria="c",
        distribution=(1, 0),
        label_mass=1,
    )
    query, note = probe.canonical()
    assert (query, note.title, note.body) == ("a b", "", "x y")
    assert largest_difference(probe, LabelDistribution((0.9, 0.1), 1.0)) == pytest.approx(0.1)
