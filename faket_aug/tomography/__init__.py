"""Projection, back-projection, filters and resampling: linear maps of tensors."""
