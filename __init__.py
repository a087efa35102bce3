"""gatefx compiles adapters that decide."""
