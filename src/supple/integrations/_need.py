"""Importing an extra, or saying which one to install."""

from __future__ import annotations

from supple.errors import need

__all__ = ["need"]
