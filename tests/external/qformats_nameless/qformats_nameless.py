"""A plugin whose packer has no family."""

from qformats import Packer, hookimpl


class Nameless(Packer):
    default_variant = "x"
    container = "huggingface"

    @classmethod
    def variants(cls):
        return ["x"]

    @classmethod
    def parse(cls, variant):
        return cls()


@hookimpl
def qformats_register_packers():
    return [Nameless]
