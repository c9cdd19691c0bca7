"""Rows of preference data -> token ids. Imports no torch and no model."""
