"""The field's tools on the same model and the same calibration tokens (see README.md here)."""
