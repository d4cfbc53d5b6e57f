"""Where drafters are: named by plugins, imported by who asks for one."""

from __future__ import annotations

from headstock.plugins.places import Places


class DrafterRegistry(Places):
    """The drafters that plugins named, by what ``--speculation`` calls them.

    The function at a place takes a ``DrafterSpec`` and the ``Resolver`` of the device, and returns
    a ``Drafter``, all of :mod:`headstock.speculative.provider`. It is imported when the drafter is
    asked for, in every process that runs the model.
    """

    __slots__ = ()
    kind = "drafter"
