"""Attribution: which image patches speak for and against each output of a model.

Nothing is imported here, so that `views`, which needs no torch, stays quick to load.
"""
