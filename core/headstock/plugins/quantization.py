"""Where readers of quantised folders are: named by plugins, imported when a folder needs one."""

from __future__ import annotations

from headstock.plugins.places import Places


class QuantizationRegistry(Places):
    """The readers that plugins named, by ``quant_method`` of ``quantization_config``.

    The function at a place is a :data:`headstock.checkpoint.formats.Join`. What multiplies the
    layout that it makes is no concern of it: each provider of ``linear`` and ``experts`` says which
    layouts it takes, in its ``Requires``.
    """

    __slots__ = ()
    kind = "checkpoint format"
