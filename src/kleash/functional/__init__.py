"""Pure tensor mathematics: tensors in, tensors out. Shapes are types here and are checked under pytest."""
