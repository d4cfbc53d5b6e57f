"""HTTP, one router a protocol, over one front door that ends in the wire.

This module and those beside it need no web framework; :mod:`headstock.server.http` does.
"""
