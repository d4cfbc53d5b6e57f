"""Inputs on which the conformance kit compares an op's providers with its reference."""
