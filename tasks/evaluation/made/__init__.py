"""Samples that a model makes to be measured."""
