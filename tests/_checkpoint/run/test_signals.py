"""`signals`: one flag for a whole process, also where one `signals()` is opened within another."""

import signal
import threading

import pytest

from purestep import checkpoint

BOTH = pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@BOTH
def test_a_signal_is_seen_by_the_outer_and_the_inner_one(number, error):
    before = handlers()
    with checkpoint.signals() as outer:
        with checkpoint.signals() as inner:
            assert not inner.received
            signal.raise_signal(number)
            assert inner.received
        assert outer.received
        with checkpoint.signals() as later:  # a signal that arrived before it was opened
            assert later.received
            with pytest.raises(error):
                signal.raise_signal(number)
    assert handlers() == before
    with checkpoint.signals() as fresh:
        assert not fresh.received


def test_a_signal_between_two_inner_ones_is_kept():
    with checkpoint.signals() as outer:
        with checkpoint.signals():
            pass
        signal.raise_signal(signal.SIGINT)
        with checkpoint.signals() as inner:
            assert inner.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert outer.received


def test_a_handler_that_other_code_put_in_between_comes_back():
    seen = []
    with checkpoint.signals() as outer:
        own = signal.signal(signal.SIGINT, lambda *arguments: seen.append(arguments))
        other = signal.getsignal(signal.SIGINT)
        with checkpoint.signals() as inner:
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is other
        signal.signal(signal.SIGINT, own)
        assert (outer.received, inner.received, seen) == (True, True, [])


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with checkpoint.signals() as asked, checkpoint.signals():
            signal.raise_signal(signal.SIGINT)
            assert not asked.received
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_joins_and_opens_none():
    found = []

    def work():
        try:
            with checkpoint.signals() as asked:
                found.append(asked)
        except ValueError as error:
            found.append(str(error))

    def threaded():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    threaded()
    with checkpoint.signals() as outer:
        threaded()
        assert found[1] is outer
    assert found[0] == "signals: must be entered in the main thread: Python handles signals there"
