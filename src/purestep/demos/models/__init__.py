"""The models and the data that demos train on."""
