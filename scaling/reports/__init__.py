"""The report of a folder of runs: `write` makes the page of sections, one module for each analysis.

Arithmetic stays outside: a section turns what scaling's functions found into sentences, tables and figures.
"""
