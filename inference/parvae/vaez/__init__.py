"""Compressed tables: the file format `.vaez`, described in inference/VAEZ.md."""
