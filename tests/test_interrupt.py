"""The first signal is a wish, the second acts as ever."""

import os
import signal

import pytest

from recon3d.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), number)
        assert interrupt.asked
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_the_second_acts_and_others_are_as_before() -> None:
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.asked
    with Interrupt() as interrupt:
        pass
    assert not interrupt.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
