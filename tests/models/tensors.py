"""Values of all tensors of a checkpoint, and whether two checkpoints have the same ones."""

import torch

import qformats


def values(path):
    model = qformats.open(path)
    return {name: model.read(name) for name in model.tensors}


def same(first, second):
    """The same values under the same names, -0 being 0."""
    before, after = values(first), values(second)
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
