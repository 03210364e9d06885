"""How good predictions are: with intervals over patients, beside the diameter alone."""
