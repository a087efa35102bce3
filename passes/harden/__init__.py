"""Passes that turn trained gates into hard, calibrated decisions."""
