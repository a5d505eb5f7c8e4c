"""Folders of runs, digests of what they hold, and files that are there whole or not at all."""
