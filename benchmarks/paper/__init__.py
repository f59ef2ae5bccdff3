"""The experiments of the seed paper (arXiv:1907.04018) and what goes past them: `make bench-paper`.

Each part writes benchmarks/results/paper-<part>.json as it goes, a row at a time. A row that is there already, under the
same settings, is not computed again, so that a run that was stopped goes on where it was.
"""
