"""What a block costs."""

import sys
import time

import numpy as np
import pytest

from recon3d.measure import measured


def test_seconds_are_those_of_the_block() -> None:
    with measured() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 5


def test_a_block_that_fails_is_measured_too() -> None:
    with pytest.raises(ValueError, match="no"), measured() as cost:
        raise ValueError("no")
    assert cost.seconds >= 0
    assert cost.peak_memory_mb > 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the process")
def test_memory_given_back_before_does_not_count() -> None:
    megabytes = 200
    with measured() as small:
        pass
    with measured() as large:
        np.ones(megabytes * 10**6, np.uint8)
    with measured() as again:
        pass
    assert large.peak_memory_mb - small.peak_memory_mb == pytest.approx(megabytes, rel=0.2)
    assert abs(again.peak_memory_mb - small.peak_memory_mb) < megabytes / 4
