"""placeholder"""
GATE_MODULES = ()
