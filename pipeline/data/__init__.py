"""What people wrote -> token parts: sources, files, rows, rejections. Imports no torch."""
