"""Scaling laws, one file each. A law is its formula, its parameters and its source; `scaling.fit` does the rest."""

from scaling.laws.chinchilla import Chinchilla
from scaling.laws.law import Law, Parameter

__all__ = ["Chinchilla", "Law", "Parameter"]
