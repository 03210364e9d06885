"""cdam-med: class-discriminative attention maps of vision transformers on CT.

The public names, listed in ``__init__.pyi``, are loaded when they are first used, so that importing
the package, and asking the command line for help, costs nothing.
"""

import lazy_loader

_get, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name != "__version__":
        return _get(name)
    from data_prep.statements import version_of

    return version_of("cdam-med")
