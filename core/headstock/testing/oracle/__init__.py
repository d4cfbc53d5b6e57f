"""The oracle kit: does a model class compute what `transformers` computes of the same weights?

``pytest --pyargs headstock.testing.models --headstock-model=MODULE`` runs it on the
:class:`~headstock.testing.oracle.case.ModelCase` objects in the list ``CASES`` of a module.
"""
