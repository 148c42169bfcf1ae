"""A bundle where it is deployed: as plain files for other languages, and how fast it runs there."""
