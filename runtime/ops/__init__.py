"""The custom operators: schema, reference, kernels, ONNX functions."""
