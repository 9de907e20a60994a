"""How does it sit in my framework? Thin callbacks for trackers and training frameworks, each imported
only when asked for, each using the public API alone.
"""
