"""The ONNX domain of the custom operators. Imports nothing, so that a session that only runs them does not either."""

DOMAIN = "gatefx"
VERSION = 1
"""Version of the domain; a change of meaning of any body raises it."""
