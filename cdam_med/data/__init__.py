"""From Hounsfield units to the images that a model sees, and the data sets it is trained on."""
