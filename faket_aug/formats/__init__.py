"""Files of the field: one module a format, `read_*` and `write_*` functions that take paths."""
