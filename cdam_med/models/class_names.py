"""Classes of libraries that may not be imported, recognised by where they are defined.

Importing MONAI's networks takes seconds. An object can only be one of its models if somebody has
imported it already, so its classes are looked for by name among those an object is made of.
"""

MONAI_VIT = "monai.networks.nets.vit.ViT"
MONAI_BLOCK = "monai.networks.blocks.transformerblock.TransformerBlock"
MONAI_ATTENTION = "monai.networks.blocks.selfattention.SABlock"


def class_named(thing: object, name: str) -> type | None:
    """Return the class of that name that an object is an instance of, or None.

    Parameters
    ----------
    thing : object
        Any object.
    name : str
        Module and name of the class, such as `MONAI_VIT`.
    """
    return next((c for c in type(thing).__mro__ if full_name(c) == name), None)


def full_name(kind: type) -> str:
    """Return module and name of a class.

    Parameters
    ----------
    kind : type
        The class.
    """
    return f"{kind.__module__}.{kind.__qualname__}"
