"""A plugin whose hook gives no classes."""

from qformats import hookimpl


@hookimpl
def qformats_register_families():
    return "junk"
