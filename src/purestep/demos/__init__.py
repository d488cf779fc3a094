"""The demos that `python -m purestep demo NAME` runs, one in each file."""

NAMES = ("text", "digits", "grpo", "dpo", "distill", "mtp", "finetune")
