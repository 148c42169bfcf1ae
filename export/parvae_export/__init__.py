"""parvae_export: from a checkpoint to one verified bundle of ONNX graphs."""
