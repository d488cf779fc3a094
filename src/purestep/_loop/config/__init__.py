"""`TrainConfig`, and the optimizer and schedule made of it."""
