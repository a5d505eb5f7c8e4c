"""Folders of runs: their names, locks and what they hold."""
