"""Plain data of the loop: progress, history, and the protocol of callbacks."""
