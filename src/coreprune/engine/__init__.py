"""Carrying a decision through a network, site by site."""
