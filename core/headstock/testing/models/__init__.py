"""The tests of the oracle kit; see :mod:`headstock.testing.oracle`."""
