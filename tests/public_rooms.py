"""What plugins may import, as docs/plugin_hooks.md lists it; everything else may move."""

PUBLIC = {
    "qformats",
    "qformats.calibration",
    "qformats.cli.commands",
    "qformats.errors",
    "qformats.folder",
    "qformats.interfaces",
    "qformats.kernels.cpu",
    "qformats.kernels.dense",
    "qformats.kernels.vectors",
    "qformats.numbers",
    "qformats.testing",
    "qformats.vocabularies",
    "qformats.work.files",
    "qformats.work.outside",
    "qformats.work.progress",
}
