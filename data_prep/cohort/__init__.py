"""The cohort folder: what it holds, how it is written, read, checked and drawn."""
