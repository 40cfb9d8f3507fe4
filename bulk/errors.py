"""What stops a job before it has done harm."""

from __future__ import annotations


class JobError(Exception):
    """One sentence that says what to change: for a person who has typed a command."""
