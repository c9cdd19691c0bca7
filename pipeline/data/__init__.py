"""The user's data -> token parts: sources, files, rows, rejections. Imports no torch."""
