"""What TensorRT takes: rules for ONNX graphs, trial builds without a GPU, plugins of the custom operators."""
