"""The entropy coder of codes: interleaved rANS in integers, and its tables."""
