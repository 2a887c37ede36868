"""Nothing for Python: conversions of socket addresses for the native modules."""
