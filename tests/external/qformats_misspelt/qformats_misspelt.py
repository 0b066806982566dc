"""A plugin with a hook that nobody calls."""

from qformats import hookimpl


@hookimpl
def qformats_register_family():
    return []
