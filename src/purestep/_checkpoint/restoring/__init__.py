"""From stored arrays to a tree: matched with a template, or into plain containers."""
