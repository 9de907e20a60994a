"""Where do results live? Run folders with a manifest, append-only records, checkpoints replaced
atomically, checksums, and resume after a kill at any moment.
"""
