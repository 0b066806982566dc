"""A plugin whose family has no name."""

from qformats import Family, FormatSpec, Packer, hookimpl


class Only(Packer):
    spec = FormatSpec("nameless", "x", "", ())


class Nameless(Family):
    packers = (Only(),)


@hookimpl
def qformats_register_families():
    return [Nameless]
