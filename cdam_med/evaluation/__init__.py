"""How good predictions and explanations are: with intervals over patients, beside baselines."""
