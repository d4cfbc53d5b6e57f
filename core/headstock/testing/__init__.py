"""The conformance kit: is a backend right, op by op, and does it serve?

``pytest --pyargs headstock.testing.suite --headstock-backend=NAME`` runs it.
"""
