"""The conformance kit's pytest options."""
