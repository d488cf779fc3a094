"""An interrupt at a chosen instruction of chosen modules."""

import sys


def interrupted(use, position, files):
    """Run with an interrupt at the given instruction of the modules; tell whether it came so far."""
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == position:
                raise KeyboardInterrupt
        return trace

    before, hook = sys.gettrace(), sys.unraisablehook
    sys.unraisablehook = lambda _: None  # pytest's would keep the object whose finalizer was interrupted
    sys.settrace(trace)
    try:
        use()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
        sys.unraisablehook = hook
    return passed >= position
