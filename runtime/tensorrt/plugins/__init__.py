"""TensorRT plugins of gatefx's operators: kernels compiled ahead of time, built into the engine that calls them.

A copy of this folder lies in every folder that gatefx.export writes with plugins, beside its kernels, so it imports
nothing of gatefx. `build_engine.py` registers them; the engine needs neither Python nor this folder when it runs.
Choosing, gathering and scattering tokens have no plugin: TensorRT's own layers do that.
No engine with these plugins has run on a GPU yet: what is checked needs none, see `tests/runtime/tensorrt/plugins/`.
"""
