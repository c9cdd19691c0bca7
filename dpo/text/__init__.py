"""Rows as people write them -> token ids. Imports no torch, and knows no model."""
