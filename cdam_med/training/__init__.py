"""Training of nodule models: fine-tuning, reduction to a small file, cross-validation."""
