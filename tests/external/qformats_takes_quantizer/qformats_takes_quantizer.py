"""A plugin that claims a quantizer which is taken."""

from qformats import Quantizer, hookimpl


class Thief(Quantizer):
    name = "rtn"

    def quantize(self, weight, packer, importance=None):
        raise NotImplementedError


@hookimpl
def qformats_register_quantizers():
    return [Thief]
