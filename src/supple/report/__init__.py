"""What does it look like? Tables, figures and one offline HTML file, drawn from findings and records
that were measured elsewhere; nothing is measured here.
"""
