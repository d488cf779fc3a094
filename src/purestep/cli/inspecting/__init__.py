"""The `inspect` command: what a path holds, the answer as plain values, and how it is shown."""
