"""Batch Normalization (Ioffe & Szegedy, 2015), replicated: every claim, with intervals."""
