"""CT series, nodules and labels: from hospital files to arrays in patient space, and to cohorts.

Everything here works without torch. Inside, arrays are indexed ``(i, j, k)`` and come with an
affine to RAS millimetres, as in nibabel; LPS appears only where DICOM and ITK's formats are read.
The public names, listed in ``__init__.pyi``, are loaded when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
