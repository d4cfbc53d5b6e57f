"""A model of one's own, found by its entry point.

pip install ./examples/model_package
pytest --pyargs headstock.testing.models --headstock-model=headstock_example_model.cases
headstock check-model ./folder          where config.json names TinyForCausalLM
"""
