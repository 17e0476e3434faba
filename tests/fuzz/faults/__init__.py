"""Fault injection: killed at any moment, or let down by the disk, nothing is lost."""
