"""What all demos share: settings, the directory of a run, the status line, interrupts."""
