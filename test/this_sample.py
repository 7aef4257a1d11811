"""A module that only the test of lazy imports imports."""

VALUE = 1
