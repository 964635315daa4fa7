"""The first signal is a wish, the second acts as ever."""

import ctypes
import os
import signal
import time

import pytest

from recon3d.interrupt import Interrupt, signals_held, sigterm_exits


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


def test_sigterm_leaves_with_its_code_and_is_as_before() -> None:
    with pytest.raises(SystemExit) as left, sigterm_exits(143):
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_ignored_sigterm_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with sigterm_exits(143):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(os.name != "posix", reason="needs the C library of the process")
def test_what_a_library_in_c_does_to_sigterm_is_undone() -> None:
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    with sigterm_exits(143):
        with signals_held():
            library.signal(int(signal.SIGTERM), ctypes.c_void_p(1))  # SIG_IGN
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
@pytest.mark.parametrize("fault", [None, ImportError])
def test_signals_are_held_until_the_end(
    number: signal.Signals, kind: type[BaseException], fault: type[Exception] | None
) -> None:
    done: list[str] = []

    def held() -> None:
        with signals_held():
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            done.append("all of the block")
            if fault is not None:
                raise fault
        done.append("nothing after it")

    with sigterm_exits(143):
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        with pytest.raises(kind):
            held()
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert done == ["all of the block"]
