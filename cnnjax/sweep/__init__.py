"""The sweep over frozen depth and what else its grid varies."""
