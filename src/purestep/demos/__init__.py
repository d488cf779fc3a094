"""What `python -m purestep demo NAME` runs: the library's own examples, one a file."""

NAMES = ("text", "grpo", "dpo", "distill", "mtp")
