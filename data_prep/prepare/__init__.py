"""From series and nodules to a cohort folder: what is read, in which processes."""
