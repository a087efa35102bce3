"""The operators' kernels in C++: what builds them, finds them and says what they are.

    kernels/               vectors and register tiles, once; compiled for each instruction set, chosen at run time
    operators/             what fits together and what runs in parallel, for any runtime
    onnxruntime_binding/   a custom-operator library that needs no header of ONNX Runtime
    torch_binding/         torch operators on torch's stable interface
    checks/                a fuzzer for sanitizers

Nothing is compiled or loaded by importing this package; without the libraries every operator runs as it did.
"""
